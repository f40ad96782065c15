"""Select the prompts of a generation, and convert examples to prompts."""

from __future__ import annotations

from seedtune.config.config import Config
from seedtune.numerics import noise
from seedtune.tasks.base import Task
from seedtune.types import Example, Message, Prompt


def drawn(config: Config, task: Task, generation: int) -> list[Example]:
    """Return a generation's training examples: each epoch is permuted by addressed noise and cut into equal batches."""
    data, size = task.train, min(config.prompts_per_generation, len(task.train))
    key = noise.key(config.seed, "prompt order")
    chosen = []
    for place in range(generation * size, (generation + 1) * size):
        epoch, index = divmod(place, len(data))
        order = noise.permutation(noise.Address(key, noise.Stream.ORDER, epoch), len(data))
        chosen.append(data[int(order[index])])
    return chosen


def prompt_of(config: Config, example: Example) -> Prompt:
    """Convert an example to an engine's prompt, with the system prompt in front of chat messages."""
    content = example.prompt
    if config.system_prompt is not None and not isinstance(content, str):
        system: Message = {"role": "system", "content": config.system_prompt}
        content = (system, *content)
    return Prompt(example.id, content, config.chat_template_kwargs)
