"""Damaged files and foreign text: what reads them raises errors of ours or none, in little time and memory.

``python tests/fuzzing.py 100000`` tries that many inputs and prints the figures; the test suite tries a few.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import runs
from damage import absurd, damaged, pick, resealed, text
from models import save_family
from seedtune import ESTrainer, apply_pack, diff_runs, pack_run, verify_run
from seedtune.cli.ray import wish_of
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import DatasetSettings, JudgeSettings
from seedtune.config.foreign_data import parse_json, parse_scalar, parse_yaml
from seedtune.config.yaml_file import load_config, override
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.errors import SeedtuneError
from seedtune.evaluation import comparison, report
from seedtune.numerics import tensor_file
from seedtune.planning.accelerators import parse_device
from seedtune.planning.cost_model import pace_of
from seedtune.rewards import answer_tags
from seedtune.rewards.sources.judge import Failure, score_in
from seedtune.run import ledger, recorded_config, replay, resuming, sealing
from seedtune.run.artifacts import pack_format
from seedtune.run.directory import RunPaths
from seedtune.run.reward_hacking.samples import flagged_samples
from seedtune.tasks.builtin import countdown, grids, instruction_format, json_schema, math_answer, multiple_choice
from seedtune.tasks.data import datasets, rows
from seedtune.tasks.environments import calls_in

SECONDS, MEMORY = 5.0, 1 << 30
"""Limits for one input: seconds of the processor, and bytes in addition to the imported packages."""


@dataclass
class Files:
    """A toy run with a pack and snapshots, and a tiny model."""

    root: Path
    run: Path = field(init=False)
    model: Path = field(init=False)

    def __post_init__(self) -> None:
        self.run, self.pack = self.root / "run", self.root / "run.pack"
        ESTrainer(args=runs.toy(self.run, alpha=None, generations=4)).train()
        pack_run(self.run, self.pack)
        self.model = save_family("llama", self.root / "model")
        self.whole = {
            path: path.read_bytes() for folder in (self.run, self.model) for path in folder.rglob("*") if path.is_file()
        }
        self.whole[self.pack] = self.pack.read_bytes()
        self.lines = runs.rows(RunPaths(self.run).ledger)

    @contextmanager
    def holding(self, path: Path, data: bytes) -> Iterator[Path]:
        """A file with other bytes for a while."""
        path.write_bytes(data)
        try:
            yield path
        finally:
            path.write_bytes(self.whole[path]) if path in self.whole else path.unlink()


def use_ledger(files: Files) -> None:
    """All that reads a ledger without a large model."""
    for use in (
        lambda: verify_run(files.run),
        lambda: diff_runs(files.run, files.run),
        lambda: pack_run(files.run, files.root / "other.pack"),
        lambda: recorded_config.run_config(files.run),
        lambda: recorded_config.check_state(files.run, ledger.read(RunPaths(files.run).ledger)),
    ):
        try:
            use()
        except SeedtuneError:
            continue
        finally:
            (files.root / "other.pack").unlink(missing_ok=True)


def a_ledger(files: Files, draw: np.random.Generator) -> None:
    path = RunPaths(files.run).ledger
    config, alone = RunPaths(files.run).config, draw.random() < 0.5
    if draw.random() < 0.3:
        data = damaged(files.whole[path], draw)
    else:
        lines, place = list(files.lines), int(draw.integers(0, len(files.lines)))
        changed = absurd({k: v for k, v in lines[place].items() if k != "check"}, draw)
        lines[place] = changed if isinstance(changed, dict) else {"x": changed}
        data = resealed(lines)
    with files.holding(path, data):
        if alone:
            config.unlink()
        try:
            use_ledger(files)
        finally:
            config.write_bytes(files.whole[config])


def a_pack(files: Files, draw: np.random.Generator) -> None:
    raw = files.whole[files.pack]
    if draw.random() < 0.4:
        data = damaged(raw, draw)
    else:
        line, _, rest = raw.partition(b"\n")
        header = {k: v for k, v in json.loads(line).items() if k != "check"}
        body = damaged(rest[: -pack_format.DIGEST], draw) if draw.random() < 0.3 else rest[: -pack_format.DIGEST]
        header = absurd(header, draw) if draw.random() < 0.7 else {**header, "bytes": len(body)}
        sealed, _ = sealing.seal(header if isinstance(header, dict) else {"seedtune_pack": header})
        data = sealed + body + hashlib.blake2b(sealed + body, digest_size=pack_format.DIGEST).digest()
    with files.holding(files.pack, data):
        try:
            apply_pack(files.pack, files.root / "unpacked")
        finally:
            shutil.rmtree(files.root / "unpacked", ignore_errors=True)


def a_snapshot(files: Files, draw: np.random.Generator) -> None:
    stored = [path for path in files.whole if "snapshots" in path.parts]
    path = pick(draw, stored)
    with files.holding(path, damaged(files.whole[path], draw)):
        contents = ledger.read(RunPaths(files.run).ledger)
        engine, _ = replay.load(files.run, recorded_config.run_config(files.run), contents)
        assert engine.fingerprint() == contents.fingerprints[contents.generations]
        engine.close()


def a_cache(files: Files, draw: np.random.Generator) -> None:
    paths = RunPaths(files.run)
    path = pick(draw, (paths.metrics, paths.samples))
    if draw.random() < 0.5:
        data = damaged(files.whole[path], draw)
    else:
        lines = [absurd(line, draw) if draw.random() < 0.3 else line for line in runs.rows(path)]
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    other = paths.metrics if path == paths.samples else paths.samples
    with files.holding(path, data), files.holding(other, files.whole[other]):
        report.render(paths)
        comparison.compare(paths), comparison.pairs(paths), comparison.last_alarms(paths), flagged_samples(paths)
        with suppress(SeedtuneError):
            pace_of(files.run)
        resuming.mend(paths, ledger.read(paths.ledger))


def a_configuration(files: Files, draw: np.random.Generator) -> None:
    path = RunPaths(files.run).config
    raw = files.whole[path]
    settings = json.dumps(absurd(parse_yaml(raw.decode()), draw)).encode()
    with files.holding(path, damaged(raw, draw) if draw.random() < 0.5 else settings):
        load_config(path)
        recorded_config.run_config(files.run)


def an_override(files: Files, draw: np.random.Generator) -> None:
    names = ("sigma", "stop", "toy.size", "vllm.x", "seed", "task_args.a", "system_prompt", "ray.workers", text(draw))
    Config.create(override({}, [f"{pick(draw, names)}={text(draw)}"]))


def tensors(files: Files, draw: np.random.Generator) -> None:
    path = files.model / "model.safetensors"
    raw = files.whole[path]
    size = int.from_bytes(raw[:8], "little")
    if draw.random() < 0.3:
        data = damaged(raw, draw)
    else:
        header = json.dumps(absurd(json.loads(raw[8 : 8 + size]), draw)).encode()
        data = len(header).to_bytes(8, "little") + header + raw[8 + size :]
    with files.holding(path, data):
        for stored in tensor_file.contents(path).values():
            tensor_file.read(stored)
            tensor_file.window(stored)


MODEL_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
)


def a_model(files: Files, draw: np.random.Generator) -> None:
    path = files.model / pick(draw, MODEL_FILES)
    raw = files.whole.get(path, b"{}")
    if draw.random() < 0.5 or path.suffix != ".json":
        data = damaged(raw, draw)
    else:
        data = json.dumps(absurd(json.loads(raw), draw)).encode()
    with files.holding(path, data):
        source = ModelSource.resolve(str(files.model))
        for read in (source.config, source.tokenizer, source.load):
            try:
                read()
            except SeedtuneError:
                continue


def a_data_file(files: Files, draw: np.random.Generator) -> None:
    name = pick(draw, ["rows.jsonl", "rows.json", "rows.csv"])
    sound = {"rows.jsonl": b'{"prompt": "a", "answer": 1}\n{"prompt": [{"role": "user", "content": "x"}]}\n'}
    sound |= {
        "rows.json": b'[{"prompt": "a", "answer": 1}, {"prompt": "b"}]',
        "rows.csv": b'prompt,answer\n"a, b",1\nc,2\n',
    }
    with files.holding(files.root / name, damaged(sound[name], draw)) as path:
        rows.examples(datasets.read(DatasetSettings(path=str(path)), "train"), "train")


ASKED = {"bullets": 2, "keywords": ["a"], "word_count": 3, "ends_with": "x"}
FITTING = json.dumps({"type": "object", "properties": {"score": {"type": "integer", "multipleOf": 2}}})


def an_answer(files: Files, draw: np.random.Generator) -> None:
    said = text(draw)
    countdown.value_of(said), countdown.reaches(said, [1, 2, 3], 6)
    answer_tags.tagged(said), answer_tags.format_marks(said)
    math_answer.final_answer(said), math_answer.normalized_answer(said), math_answer.equal(said[:300], "\\frac{1}{2}")
    multiple_choice.chosen(said, ["a", "b"]), multiple_choice.choice_said(said)
    instruction_format.instructions_followed([said], [ASKED])
    grids.grid_of(said), json_schema.json_marks([said], [FITTING])
    for call in calls_in(said, {"f": lambda x: x}):
        assert isinstance(call.name, str)
    comparison.marked(said, text(draw))


def a_reply(files: Files, draw: np.random.Generator) -> None:
    choices = (
        JudgeSettings(),
        JudgeSettings(field="score"),
        JudgeSettings(pattern=r"(\d+)"),
        JudgeSettings(pattern="(a+)+b"),
    )
    with suppress(Failure):
        score_in(text(draw), pick(draw, choices if draw.random() < 0.05 else choices[:3]))


def plain_text(files: Files, draw: np.random.Generator) -> None:
    said = text(draw)
    parse_scalar(said)
    for read in (parse_json, parse_yaml):
        try:
            read(said)
        except ValueError as error:
            if len(str(error)) > 1000:
                raise TypeError("a long error") from error
    for use in (lambda: parse_device(said), lambda: wish_of(said, {"toy": 1})):
        try:
            use()
        except SeedtuneError:
            continue


def a_schema(files: Files, draw: np.random.Generator) -> None:
    sound = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}, "required": ["a"], "$defs": {}}
    json_schema.json_marks(['{"a": "x"}'], [json.dumps(absurd(sound, draw))])


TARGETS: dict[Callable[[Files, np.random.Generator], None], int] = {
    a_ledger: 12, a_pack: 12, a_snapshot: 6, a_cache: 8, a_configuration: 6, an_override: 6, tensors: 10, a_model: 1,
    a_data_file: 8, an_answer: 10, a_reply: 10, plain_text: 10, a_schema: 4,
}  # fmt: skip
"""What is tried → its share of the inputs."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after some seconds of the processor; 0: never."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def attempt(
    target: Callable[[Files, np.random.Generator], None], files: Files, seed: int, seconds: float = SECONDS
) -> str | None:
    """Try one input; return the trace of anything but an error of ours."""
    try:
        with limited(seconds):
            target(files, np.random.default_rng([seed, *target.__name__.encode()]))
    except SeedtuneError as error:
        return None if len(str(error)) < 21_000 else f"an error of {len(str(error))} characters"
    except BaseException:  # noqa: BLE001 - a panic of Rust is one, too
        return traceback.format_exc()
    return None


def ready(folder: Path) -> Files:
    """Files for the targets, each of which has imported and compiled what it needs: no input pays for that."""
    files = Files(folder)
    for target in TARGETS:
        attempt(target, files, 0, seconds=0.0)
    return files


def main(inputs: int, first: int = 0) -> int:
    """Try so many inputs, print what failed and the figures, and return the exit code."""
    logging.disable(logging.CRITICAL)
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        files = ready(Path(folder))
        used = next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line
        )
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY,) * 2)
        total = 0
        for target, share in TARGETS.items():
            count, started, slowest = -(-inputs * share // sum(TARGETS.values())), time.process_time(), 0.0
            for seed in range(first, first + count):
                began = time.process_time()
                trace = attempt(target, files, seed)
                slowest = max(slowest, time.process_time() - began)
                if trace is not None:
                    what = trace.strip().splitlines()[-1][:150]
                    place = [line.strip() for line in trace.splitlines() if "src/seedtune" in line][-1:]
                    if not failed[(key := f"{target.__name__} {place} {what}")]:
                        print(f"{target.__name__} {seed}:\n{trace}", flush=True)
                    failed[key] += 1
            total += count
            used_s = time.process_time() - started
            print(f"{target.__name__:16} {count:7,} inputs, {used_s:7.1f} s, slowest {slowest:.2f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{total:,} inputs, {sum(failed.values())} failures, peak memory {peak:,.0f} MiB with all packages")
    for key, times in failed.most_common():
        print(f"  {times} × {key}")
    return int(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main(*map(int, sys.argv[1:])))
