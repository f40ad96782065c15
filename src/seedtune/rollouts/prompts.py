"""Which prompts a generation has, and how an example becomes a prompt."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seedtune.config.config import Config
from seedtune.numerics import noise
from seedtune.tasks.base import Task
from seedtune.types import Example, Message, Prompt


def drawn(config: Config, task: Task, generation: int) -> list[Example]:
    """A generation's training prompts: epochs in addressed random order, cut into equal batches."""
    data, size = task.train, min(config.prompts_per_generation, len(task.train))
    places = (divmod(place, len(data)) for place in range(generation * size, (generation + 1) * size))
    return [data[int(_order(config.seed, epoch, len(data))[index])] for epoch, index in places]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The places of an epoch's examples, computed once for all generations of the epoch."""
    key = noise.key_for(seed, noise.Purpose.PROMPT_ORDER)
    return noise.permutation(noise.Address(key, noise.Stream.ORDER, epoch), count)


def prompt_of(config: Config, example: Example) -> Prompt:
    """An example as an engine takes it, the system prompt in front of a chat."""
    content = example.prompt
    if config.system_prompt is not None and not isinstance(content, str):
        system: Message = {"role": "system", "content": config.system_prompt}
        content = (system, *content)
    return Prompt(example.id, content, config.chat_template_kwargs)
