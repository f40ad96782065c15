"""A game of several turns with a small model: ES teaches a small Llama to guess numbers by what it is told.

    python benchmarks/environment.py [--seeds 3] [--output benchmarks/results]

The model sees ``1-31:`` and guesses a number; the environment answers ``higher`` or ``lower``; five guesses are what
halving 31 numbers needs.  It was trained for ``STEPS`` steps on the games of a player who listens, but is timid: a
guess is the smallest number that is left, and the middle one only two times in five.  With greedy guesses it therefore
counts upwards.  ES gets the environment's own reward, 1 for a number found.  The number is not in the prompt: only the
way of guessing can be learned.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seedtune import ESConfig, ESTrainer
from seedtune.tasks.builtin.number_guessing import NumberGuessing

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
NUMBERS, GUESSES = 31, 5
STEPS, BATCH, HALVES = 300, 64, 0.4
SETTINGS = {
    "sigma": 0.01,
    "population": 32,
    "prompts_per_generation": 31,
    "generations": 100,
    "eval_steps": 10,
    "save_steps": 0,
    "max_completion_length": 2,
    "stop": ("\n",),
}


def rows() -> list[dict[str, Any]]:
    """Every number."""
    game = {"prompt": f"1-{NUMBERS}:", "low": 1, "high": NUMBERS, "guesses": GUESSES}
    return [{**game, "answer": answer} for answer in range(1, NUMBERS + 1)]


def game(draw: np.random.Generator) -> tuple[str, list[bool]]:
    """A game as text, and of each character whether it is the player's."""
    row, environment = rows()[draw.integers(NUMBERS)], NumberGuessing()
    environment.reset(**row)
    text, own = row["prompt"], [False] * len(row["prompt"])
    while True:
        middle = (environment.least + environment.most) // 2
        guess = middle if draw.random() < HALVES else environment.least
        reply = environment.step(str(guess))
        move, answer = f"{guess}\n", "" if reply is None else f"{reply}\n"
        text, own = text + move + answer, own + [True] * len(move) + [False] * len(answer)
        if reply is None:
            return text, own


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, a word or a sign."""
    words = (*SPECIAL, "-", ":", "\n", "higher", "lower", "between", "and", *map(str, range(NUMBERS + 1)))
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Split(Regex(r"\d+|[a-z]+|[-:\n]| +"), "isolated")
    made.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def train_model(folder: Path, seed: int = 0) -> None:
    """Train the model on games and write it as a Hugging Face folder."""
    torch.manual_seed(seed)
    words, draw = tokenizer(), np.random.default_rng(seed + 1)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=96,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in range(STEPS):
        model(**_batch(words, draw)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _batch(words: PreTrainedTokenizerFast, draw: np.random.Generator) -> dict[str, torch.Tensor]:
    """Games; only the player's tokens are learned."""
    games, rows = [game(draw) for _ in range(BATCH)], []
    for text, own in games:
        found = words(text, return_offsets_mapping=True)
        rows.append((found["input_ids"], [own[start] for start, _ in found["offset_mapping"]]))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*its, *[0] * (longest - len(its))] for its, _ in rows])
    own = torch.tensor([[*mine, *[False] * (longest - len(mine))] for _, mine in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(~own, -100)}


class Curve:
    """A callback that collects (generation, conversations, seconds, share found)."""

    def __init__(self) -> None:
        self.points: list[tuple[int, int, float, float]] = []
        self._rollouts, self._seconds = 0, 0.0

    def on_start(self, *_: Any) -> None:
        """Nothing yet."""

    def on_generation(self, metrics: dict[str, Any]) -> None:
        """Add up what the generation cost."""
        self._rollouts += metrics["rollouts"]
        self._seconds += metrics["step_time"]

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """A point of the curve."""
        self.points.append((metrics["generation"], self._rollouts, self._seconds, metrics["eval_reward"]))

    def on_end(self, *_: Any) -> None:
        """Nothing left to do."""


def run(folder: Path, seed: int) -> Curve:
    """One training run with the environment's own reward."""
    curve = Curve()
    with tempfile.TemporaryDirectory() as output:
        config = ESConfig.create({**SETTINGS, "model": str(folder), "seed": seed, "output_dir": f"{output}/run"})
        trainer = ESTrainer(
            args=config,
            environment_factory=NumberGuessing,
            train_dataset=rows(),
            eval_dataset=rows(),
            callbacks=[curve],
        )
        trainer.train()
        trainer.load().close()
    print(f"seed {seed}: {[(g, n, round(s, 1), round(v, 3)) for g, n, s, v in curve.points]}", flush=True)
    return curve


def table(curves: list[Curve]) -> str:
    """Share of numbers found, a column a seed."""
    seeds = "".join(f" seed {seed} |" for seed in range(len(curves)))
    lines = [f"| generations | conversations | seconds |{seeds}", "| ---: | ---: | ---: |" + " ---: |" * len(curves)]
    for index, (generation, rollouts, _, _) in enumerate(curves[0].points):
        seconds = sum(curve.points[index][2] for curve in curves) / len(curves)
        found = "".join(f" {curve.points[index][3]:.1%} |" for curve in curves)
        lines.append(f"| {generation} | {rollouts:,} | {seconds:.0f} |{found}")
    return "\n".join(lines)


def main() -> None:
    """Train the model, then teach it with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for the table (environment.md)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train_model(Path(folder))
        print(f"trained in {time.perf_counter() - started:.0f} s", flush=True)
        text = table([run(Path(folder), seed) for seed in range(options.seeds)])
    print(text)
    if options.output:
        write(options.output, text, options.seeds)


def write(folder: Path, text: str, seeds: int) -> None:
    """The table with its command, settings and versions."""
    command = f"`python benchmarks/environment.py --seeds {seeds}`, {time.strftime('%Y-%m-%d')}."
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads."
    made = f"{command} Python {platform.python_version()}, torch {torch.__version__}, {threads}"
    what = "Share of the 31 numbers found within five greedy guesses; the same numbers as in training."
    (folder / "environment.md").write_text(
        "\n".join(["# Guessing numbers", "", made, "", f"`{json.dumps(SETTINGS)}`", "", what, "", text, ""])
    )


if __name__ == "__main__":
    main()
