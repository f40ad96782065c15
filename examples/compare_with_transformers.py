"""Load an exported model with plain transformers and compare its greedy answers with the engine's.

    python examples/compare_with_transformers.py RUN EXPORT [--prompts 32]

Both sides compute in float32: in bfloat16 two implementations of attention round differently, and one
different rounding is enough to change a token that was nearly tied.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedtune import ESTrainer
from seedtune.rollouts.evaluator import Evaluator
from seedtune.run import recorded_config


def engine_answers(export: Path, run: Path, count: int) -> list[tuple[str, str]]:
    """(question, answer) for held-out prompts, by the engine."""
    config = recorded_config.run_config(run).replace(model=str(export), dtype="float32")
    trainer = ESTrainer(args=config)
    outcome = Evaluator(trainer.load(), trainer.task, config).unperturbed(trainer.task.test[:count], generation=0)
    return [(outcome.examples[r.prompt].prompt, r.text) for r in outcome.rollouts]  # type: ignore[misc]


@torch.no_grad()
def transformers_answer(
    model: AutoModelForCausalLM, tokenizer: AutoTokenizer, prompt: list[dict[str, str]], new: int
) -> str:
    """One greedy answer by ``generate``."""
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    new = recorded_config.run_config(options.run).max_completion_length
    tokenizer = AutoTokenizer.from_pretrained(options.export)
    model = AutoModelForCausalLM.from_pretrained(options.export, dtype=torch.float32)
    equal = 0
    answers = engine_answers(options.export, options.run, options.prompts)
    for prompt, ours in answers:
        theirs = transformers_answer(model, tokenizer, [dict(message) for message in prompt], new)
        equal += theirs == ours
        if theirs != ours:
            print(f"different: {prompt[-1]['content']}\n  engine       {ours!r}\n  transformers {theirs!r}")
    print(
        f"{equal} of {len(answers)} greedy answers of the exported model are the same in transformers and in the engine"
    )
    sys.exit(equal != len(answers))


if __name__ == "__main__":
    main()
