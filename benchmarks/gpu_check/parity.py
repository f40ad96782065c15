"""The engine on the device in float32 against plain Hugging Face models of its members on the CPU, and its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import models
import references
from benchmarks.gpu_check.check import Check
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics import noise
from seedtune.types import UNPERTURBED, Member, Term, Update

FAMILIES = ("qwen2", "llama", "gemma2", "qwen3", "gpt2", "phi3", "deepseek-v3", "mixtral")
PERTURBATIONS = ("lowrank", "gaussian", "flipout")
MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), Member(1, 4, 1), UNPERTURBED)
PROMPTS = models.text_prompts("Hello there", "x", "The quick brown fox jumps", "The quick brown cat")
UPDATE = Update(1, (Term(1, 0, 0.02), Term(1, 4, -0.03)))
SIGMA = 0.05
CLOSE = 1e-3


def run(check: Check) -> None:
    """Compare every perturbation in every family."""
    for family in FAMILIES[: check.pick(len(FAMILIES), 1)]:
        with tempfile.TemporaryDirectory() as folder:
            models.save_family(family, Path(folder))
            for perturbation in PERTURBATIONS:
                with check.attempt(f"parity {family} {perturbation}"):
                    _compare(check, family, Path(folder), perturbation)


def _compare(check: Check, family: str, folder: Path, perturbation: str) -> None:
    own = models.load_engine(folder, noise={"perturbation": perturbation}, device=check.device, dtype="float32")
    off, agree, count = _answers(own, folder)
    name, note = f"parity {family} {perturbation}", f"logits within {off:.1e}; below {CLOSE:.0e} expected"
    check.say(name, f"{agree}/{count}", note, wrong=agree < count or not off < CLOSE)
    different = _different_tensors(own, perturbation)
    state = "different" if different else "equal"
    check.say(f"update {family} {perturbation}", state, ", ".join(different)[:200], wrong=bool(different))
    own.close()


def _answers(own: TransformersEngine, folder: Path) -> tuple[float, int, int]:
    """Return the largest difference of logits, how many greedy completions agree, and of how many."""
    with models.recorded_logits() as logits:
        found = models.answers(own, models.job(PROMPTS, members=MEMBERS, sigma=SIGMA, ignore_eos=True))
    truth, off, agree = models.Reference(folder, own.weights.tensors, own.noise), 0.0, 0
    for position, member in enumerate(MEMBERS):
        alone = truth.set_member(member, SIGMA)
        for prompt in PROMPTS:
            tokens = list(found[member, prompt.id, 0].token_ids)
            ids = list(own.tokenizer.hf(prompt.content)["input_ids"])
            wanted, ours = models.forced_logits(alone, ids, tokens), torch.stack(logits[position, prompt.id, 0])
            off = max(off, float((ours - wanted).abs().max()))
            agree += wanted.argmax(-1).tolist() == tokens
    return off, agree, len(found)


def _different_tensors(own: TransformersEngine, perturbation: str) -> list[str]:
    """Apply an update; return the tensors whose bits are not those of numpy."""
    before, run_seed = models.numpy_weights(own), own.noise.run_seed
    kinds = {"lowrank": {"rank": own.noise.rank}, "flipout": {"shared_noise": own.noise.shared_noise}}
    how = kinds.get(perturbation, {})
    own.apply(UPDATE)
    after = models.numpy_weights(own)
    expected = {n: references.updated(x, noise.key(run_seed, n), [UPDATE], **how) for n, x in before.items()}
    return [name for name in before if not np.array_equal(after[name].view(np.uint8), expected[name].view(np.uint8))]
