"""Verify a cell: its ledger gives its fingerprint, and the model of that fingerprint the figure of the tables."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.evidence import measure
from benchmarks.evidence.tasks import TASKS, model_path

Row = dict[str, Any]


def verify(cell: Row, runs: Path) -> str:
    """Replay from the base model, compare, measure again; return what was found.  Raises what fails."""
    import seedtune
    from seedtune.run import recorded_config
    from seedtune.run.replay import RecordedRun

    model = model_path(cell["model"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "ledger.jsonl").write_bytes(gzip.decompress((runs / f"{cell['id']}.jsonl.gz").read_bytes()))
        proof = seedtune.verify_run(root, model=model)
        recorded = RecordedRun.read(root)
        config = recorded_config.for_weights(recorded.config, model=model)
        task = TASKS[cell["task"]]
        with recorded.weights(config, recorded.contents.generations) as engine:
            found = measure.of_engine(engine, measure.config(cell["model"], task), task, task.data().held_out)
    if proof.fingerprint != cell["fingerprint"]:
        raise SystemExit(f"{cell['id']}: the ledger gives {proof.fingerprint}, the table has {cell['fingerprint']}")
    told = cell["points"][-1]["measured"]["reward"]
    same = "the same" if found["reward"] == told else f"in the table {told:.6f}"
    what = f"{cell['task']} | {cell['model']} | {cell['method']} | seed {cell['seed']}"
    replayed = f"{proof.generations} generations replayed in {proof.seconds:.1f} s"
    return f"{what}: {replayed}, weights {proof.fingerprint}; held-out reward {found['reward']:.6f}, {same}"
