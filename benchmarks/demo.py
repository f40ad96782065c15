"""The demo, by seed: what changed on held-out questions, with paired intervals, time and tokens.

    python benchmarks/demo.py [--seeds 3] [--first 0] [--label PROCESSOR] [--set KEY=VALUE] [--output FOLDER]

A run is ``seedtune train examples/right-and-brief.yaml`` in a process of its own with another seed; the figures are
those of ``seedtune samples``, read from the run's files.  Finished runs are kept in demo-runs.jsonl of the output
folder and stay on the page; ``--record RUN`` puts a finished run there instead of making one.  What demo-notes.md of
that folder says is put on the page, too.

The environment of this process is passed on: with ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
MKL_ENABLE_INSTRUCTIONS=AVX2 NUMBA_CPU_NAME=znver3 and NUMBA_CPU_FEATURES without those of AVX-512 it is what an AVX2
processor gets; the page has the vectors that the kernels used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from seedtune.config import yaml_file
from seedtune.evaluation import comparison
from seedtune.numerics.machine import processor
from seedtune.run import directory, recorded_config

CONFIG = Path(__file__).parents[1] / "examples" / "right-and-brief.yaml"
SHOWN = 8
"""Answers of each run on the page, the first held-out ones."""


def one_run(seed: int, label: str, sets: list[str]) -> dict[str, Any]:
    """Train with this seed, and read what changed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        settings = [f"output_dir={root}", f"seed={seed}", *sets]
        command = [sys.executable, "-m", "seedtune", "train", str(CONFIG)]
        subprocess.run([*command, *(word for item in settings for word in ("--set", item))], check=True)
        return {"label": label, "sets": sets, **figures(root)}


def figures(root: Path) -> dict[str, Any]:
    """The paired figures, the alarms at the end, the cost, and some answers of a run."""
    paths = directory.RunPaths(root)
    found = comparison.compare(paths)
    assert found is not None
    rows = directory.read_lines(paths.metrics)
    generations = [row for row in rows if "reward" in row]
    answers: dict[int, dict[str, Any]] = {}
    for row in directory.read_lines(paths.samples):
        if row["split"] == "test" and row["prompt_id"] < SHOWN:
            asked = answers.setdefault(row["prompt_id"], {"question": row["prompt"][-1]["content"]})
            asked["before" if row["generation"] == 0 else "after"] = row["completion"]
    return {
        "seed": recorded_config.run_config(root).seed,
        "seconds": sum(row.get("step_time", row.get("eval_time", 0.0)) for row in rows),
        "vectors": processor.vector_name(),
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
        "prompts": found.prompts,
        "changes": {change.measure: change.cells for change in found.changes},
        "alarms": comparison.last_alarms(paths),
        "generated": round(sum(row["completions/mean_length"] * row["rollouts"] for row in generations)),
        "rollouts": sum(row["rollouts"] for row in generations),
        "answers": list(answers.values()),
    }


def page(runs: list[dict[str, Any]], said: str) -> str:
    """A table a processor, and the first answers of every run."""
    lines = ["# The demo, by seed", "", "`python benchmarks/demo.py`; the settings were chosen on training questions."]
    lines += ["", f"`{json.dumps(yaml_file.read_settings(CONFIG))}`", "", *([said, ""] if said else [])]
    for label in dict.fromkeys(run["label"] for run in runs):
        mine = sorted((run for run in runs if run["label"] == label), key=lambda run: run["seed"])
        lines += [f"## {label}", "", *_table(mine), "", *_ends(mine), ""]
    lines += ["## Answers", "", f"The first {SHOWN} held-out questions, every run.", ""]
    for run in runs:
        lines += [f"### {run['label']}, seed {run['seed']}", "", "| question | before | after |", "| --- | --- | --- |"]
        lines += [f"| {_cell(a['question'])} | {_cell(a['before'])} | {_cell(a['after'])} |" for a in run["answers"]]
        lines.append("")
    return "\n".join(lines)


def _table(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| seed | measure | before | after | difference, paired |", "| ---: | --- | ---: | ---: | ---: |"]
    for run in runs:
        for measure, cells in run["changes"].items():
            lines.append(f"| {run['seed']} | {measure} | {' | '.join(cells)} |")
    return lines


def _ends(runs: list[dict[str, Any]]) -> list[str]:
    """What each run took, and its alarms."""
    lines = []
    for run in runs:
        where = ", ".join([f"{run['vectors']} kernels, {run['cores']} cores", run["date"], *run["sets"]])
        lines.append(
            f"* Seed {run['seed']}: {run['prompts']} held-out questions; {run['rollouts']:,} rollouts, "
            f"{run['generated']:,} generated tokens, {run['seconds']:.0f} s of generations and evaluations ({where}); "
            f"alarms in the last generation: {'; '.join(run['alarms']) or 'none'}."
        )
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(empty)"


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many; 0: only the page of finished runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--label", default=platform.machine(), help="the processor, as the page names it")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="further settings, such as dtypes")
    parser.add_argument("--record", type=Path, metavar="RUN", help="a finished run to put on the page")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    kept = options.output / "demo-runs.jsonl"
    runs = directory.read_lines(kept)
    for seed in range(options.first, options.first + options.seeds):
        if any((run["label"], run["seed"], run["sets"]) == (options.label, seed, options.sets) for run in runs):
            continue
        made = one_run(seed, options.label, options.sets)
        directory.append_lines(kept, [made])
    if options.record:
        directory.append_lines(kept, [{"label": options.label, "sets": options.sets, **figures(options.record)}])
    runs, notes = directory.read_lines(kept), options.output / "demo-notes.md"
    said = notes.read_text(encoding="utf-8").strip() if notes.exists() else ""
    (options.output / "demo.md").write_text(page(runs, said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
