"""Writes benchmarks/results/evidence/tables.md and the figures beside it."""

from __future__ import annotations

from benchmarks.evidence import figures, tables
from benchmarks.evidence.baselines import BEST_PROMPT, VOTE
from benchmarks.evidence.methods import GIVEN_NOTHING, GRIDS
from benchmarks.evidence.study import TUNED, Store
from benchmarks.evidence.tasks import SMALL, SMOLLM2, TASKS

TRAINED = [name for name in GRIDS if name not in (BEST_PROMPT, VOTE)]
THREE = (GIVEN_NOTHING, TUNED, "GRPO")
FIRST = [("countdown", "llama"), ("products", "llama")]
OTHERS = [(task, model) for task in ("countdown", "products") for model in SMALL]
TALK = [("conciseness", SMOLLM2), ("format", SMOLLM2)]


def write(store: Store) -> None:
    """The page of all tables."""
    parts = ["# Tables of the study", "", "`python -m benchmarks.evidence page`, from cells.jsonl alone.", ""]

    def add(title: str, text: str) -> None:
        if text.count("\n") > 1:
            parts.extend([f"## {title}", "", text, ""])

    for task, model in [*FIRST, *TALK]:
        found = tables.efficiency(store, task, model, list(GRIDS), "GRPO")
        size = f"{TASKS[task].rollouts:,} rollouts; {len(TASKS[task].data().held_out)} held-out prompts"
        add(f"Sample efficiency: {task}, {model} ({size})", found)
    add("Equal rollouts and equal FLOPs", tables.equal_compute(store, [*OTHERS, *TALK], GIVEN_NOTHING, "GRPO"))
    add("The same with σ and α tuned", tables.equal_compute(store, [*OTHERS, *TALK], TUNED, "GRPO"))
    add("Robustness: σ by model", tables.sigmas(store, [*OTHERS, *TALK], GIVEN_NOTHING, TUNED))
    add("Horizon: share of right ends", tables.horizon(store, THREE, "GRPO"))
    add("Stability over seeds", tables.stability(store, [*OTHERS, *TALK], THREE))
    for task, model in TALK[:1]:
        add("Reward hacking: conciseness", tables.kept(store, task, model, [*THREE, BEST_PROMPT]))
    for task, model in FIRST:
        add(f"Variants: {task}, {model}", tables.variants(store, task, model))
    add("Cost of a thousand rollouts, idle", tables.costs(store))
    add("Exact repeats", tables.repeats(store))
    (store.folder / "tables.md").write_text("\n".join(parts), encoding="utf-8")
    shown = [(task, model) for task, model in FIRST if tables.runs_of(store, task, model, "GRPO")]
    figures.efficiency(store, shown, TRAINED, store.folder / "efficiency.svg")
    if tables.runs_of(store, "conciseness", SMOLLM2, "GRPO"):
        figures.front(store, "conciseness", SMOLLM2, THREE, store.folder / "front.svg")
