"""A model of Qwen2.5-1.5B's shape with random weights through the engine, and what a decode step is made of."""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf

import models
from benchmarks.gpu_check.check import Check
from seedtune.config.config import Config
from seedtune.engines.base import EngineTimes
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Sampling, Term, Update

SIGMA = 0.01
PREFILL_TOKENS = 4096


@dataclass
class Loaded:
    """An engine, the members and prompts that it is asked, and the new tokens of each."""

    check: Check
    engine: TransformersEngine
    members: Sequence[Member]
    prompts: Sequence[Prompt]
    tokens: int

    @property
    def name(self) -> str:
        """The perturbation."""
        return self.engine.noise.perturbation

    def job(self, members: Sequence[Member], tokens: int) -> Job:
        """Return a job of fixed length."""
        return Job(0, SIGMA, tuple(members), tuple(self.prompts), Sampling(max_tokens=tokens, ignore_eos=True))

    def run(self, members: Sequence[Member], tokens: int) -> tuple[float, EngineTimes]:
        """Return the seconds of a job, and the engine's own times."""
        self.engine.take_times()
        began = time.perf_counter()
        list(self.engine.evaluate([self.job(members, tokens)]))
        self.check.sync()
        return time.perf_counter() - began, self.engine.take_times()

    def completions(self, members: Sequence[Member]) -> list[tuple[Member, int, tuple[int, ...]]]:
        """Return (member, prompt, token ids) of every rollout of a job, sorted."""
        found = self.engine.evaluate([self.job(members, self.tokens)])
        return sorted((r.member, r.prompt, r.token_ids) for r in found)


def run(check: Check) -> None:
    """Measure every perturbation, and Hugging Face's own loop beside them."""
    with tempfile.TemporaryDirectory(prefix="qwen-") as folder:
        _save(check, Path(folder))
        for perturbation in ("lowrank", "gaussian", "flipout"):
            with check.attempt(perturbation):
                _measure(_load(check, Path(folder), perturbation))
            check.release()
        if check.left() > check.pick(40, 0):
            _generate(check, Path(folder))


def _save(check: Check, folder: Path) -> None:
    config = hf.Qwen2Config(
        hidden_size=check.pick(1536, 64),
        intermediate_size=check.pick(8960, 96),
        num_hidden_layers=check.pick(28, 2),
        num_attention_heads=check.pick(12, 4),
        num_key_value_heads=2,
        vocab_size=check.pick(151936, 128),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=models.EOS,
        pad_token_id=models.PAD,
    )
    with torch.device(check.device):
        hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    check.release()


def _load(check: Check, folder: Path, perturbation: str) -> Loaded:
    began = time.perf_counter()
    config = Config.create({"model": str(folder), "transformers": {"device": check.device}})
    engine = TransformersEngine(config, noise=Noise(1, perturbation))
    engine.prefill_tokens = PREFILL_TOKENS
    engine.load()
    check.say(f"{perturbation}: load seconds", time.perf_counter() - began)
    together = engine.perturbation.together
    members = [Member(0, p // 2, 1 - 2 * (p % 2)) for p in range(check.pick(30, 4) if together else 2)]
    texts = [f"Question {i}: " + "how many legs has a spider, and why? " * 2 for i in range(100)]
    prompts = models.text_prompts(*texts[: check.pick(8 if together else 100, 2)])
    return Loaded(check, engine, members, prompts, check.pick(24, 3))


def _measure(loaded: Loaded) -> None:
    loaded.run(loaded.members, 3)
    _steps(loaded, "perturbed", loaded.members)
    if loaded.engine.perturbation.together:
        _steps(loaded, "unperturbed", [UNPERTURBED] * len(loaded.members))
        _reproducibility(loaded)
    _profile(loaded)
    _weights(loaded)
    loaded.engine.close()


def _steps(loaded: Loaded, name: str, members: Sequence[Member]) -> None:
    """Say what a decode step takes."""
    seconds, times = loaded.run(members, loaded.tokens)
    together = loaded.engine.perturbation.together
    rows, waves = len(loaded.prompts) * (len(members) if together else 1), 1 if together else len(members)
    note = f"{rows} rows, prefill {times.prefill:.2f} s of {seconds:.2f}"
    each = times.decode / (loaded.tokens - 1) / waves
    loaded.check.say(f"{loaded.name}, {name}: ms a decode step", each * 1e3, note)


def _reproducibility(loaded: Loaded) -> None:
    """Say whether a job gives the same completions twice, and whether members depend on those beside them."""
    check = loaded.check
    first, second = (loaded.completions(loaded.members) for _ in range(2))
    same = sum(map(tuple.__eq__, first, second)) / len(first)
    check.say(
        f"{loaded.name}, same job twice: equal completions", same, "anything but 1 breaks resume", wrong=same < 1.0
    )
    some = loaded.members[:2]
    alone = sorted(row for member in some for row in loaded.completions([member]))
    among = [row for row in first if row[0] in some]
    same = sum(map(tuple.__eq__, alone, among)) / len(among)
    check.say(
        f"{loaded.name}, alone or among others: equal completions",
        same,
        "below 1: products depend on the rows beside them",
    )


def _profile(loaded: Loaded) -> None:
    """Say how many kernels and waits a prefill and three steps have, and which kernels take longest."""
    check, members = loaded.check, loaded.members if loaded.engine.perturbation.together else loaded.members[:1]
    on_gpu = [] if check.dry else [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *on_gpu]) as seen:
        _, times = loaded.run(members, 4)
    events = seen.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy, waits = sum(event.self_device_time_total for event in kernels) / 1e6, _waits(loaded, members)
    syncs = sum("Synchronize" in event.name for event in events)
    note = f"busy {busy:.3f} s of {times.prefill + times.decode:.3f} s, {syncs} synchronisations"
    check.say(f"{loaded.name}: kernels of a prefill and 3 steps", len(kernels), note)
    check.say(f"{loaded.name}: waits that torch reports", waits, "of a prefill and 2 steps")
    longest: Counter[str] = Counter()
    for event in kernels:
        longest[event.name[:60]] += event.self_device_time_total / 1e3
    for name, milliseconds in longest.most_common(8):
        check.say(f"{loaded.name}: ms of {name}", milliseconds)


def _waits(loaded: Loaded, members: Sequence[Member]) -> int:
    if loaded.check.dry:
        loaded.run(members, 3)
        return 0
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        loaded.run(members, 3)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in heard)


def _weights(loaded: Loaded) -> None:
    """Say what setting members, an update and a fingerprint take."""
    check, engine, sigmas = loaded.check, loaded.engine, (SIGMA + i / 1e4 for i in itertools.count())
    pair, batch = (Member(0, 5, 1), Member(0, 6, 1)), [0, 1] if engine.perturbation.together else [0]
    update = Update(1, tuple(Term(1, p, 1e-9) for p in range(check.pick(30, 2))))
    for name, work in (
        ("set_members", lambda: engine.perturbation.set_members(pair, batch, sigma=next(sigmas))),
        ("an update", lambda: engine.apply(update)),
        ("the fingerprint", engine.fingerprint),
    ):
        check.say(f"{loaded.name}: {name}: ms", check.host_seconds(work, 2) * 1e3)


def _generate(check: Check, folder: Path) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(check.device).eval()
    tokens = check.pick(24, 2)
    ids = torch.randint(3, 90, (check.pick(240, 2), 80), device=check.device)
    how = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "pad_token_id": models.PAD}
    with torch.no_grad():
        seconds = check.host_seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **how), 1)
    check.say("Hugging Face generate: ms a token", seconds / tokens * 1e3, f"{len(ids)} rows, with the prefill")
