"""Select the prompts of a generation, and convert examples to prompts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seedtune import engines
from seedtune.config.config import Config
from seedtune.config.rules import RENDERING
from seedtune.errors import DataError
from seedtune.numerics import noise
from seedtune.tasks import environments
from seedtune.tasks.base import Task
from seedtune.types import Example, Message, Prompt, Sampling

DIGESTED = 4096
"""Most training prompts, spread evenly, whose tokens a digest is of: reading them all again could take minutes."""


def drawn(config: Config, task: Task, generation: int) -> list[Example]:
    """Return a generation's training examples, all different: each epoch is ordered at random and cut into batches."""
    data, size = task.train, min(config.prompts_per_generation, len(task.train))
    places = (divmod(place, len(data)) for place in range(generation * size, (generation + 1) * size))
    return [data[int(_order(config.seed, epoch, len(data), size)[index])] for epoch, index in places]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int, size: int) -> NDArray[np.int64]:
    """The places of an epoch's examples: a permutation by addressed noise, whose start avoids the last epoch's end.

    If batches of ``size`` do not divide the ``count`` examples, a batch may lie in two epochs.  Its examples of the
    first are put behind its places in the second.  The end of an epoch depends on the epoch before it only if two
    batches overlap in one, that is for fewer than 2·``size`` examples; and a batch begins with an epoch again after
    ``size``/gcd epochs.
    """
    key = noise.key_for(seed, noise.Purpose.PROMPT_ORDER)
    shared = epoch % (size // math.gcd(size, count))
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for number in range(epoch - (shared if count < 2 * size else min(1, shared)), epoch + 1):
        before, order = order, noise.permutation(noise.Address(key, noise.Stream.ORDER, number), count)
        head = -number * count % size
        if before.size and head:
            new = np.flatnonzero(~np.isin(order, before[head - size :]))[:head]
            order = np.concatenate([order[new], np.delete(order, new)])
    return order


def sampling_of(config: Config, generation: int = 0) -> Sampling:
    """Return how a run's completions are sampled; ``generation`` addresses the draws."""
    return Sampling(
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        stop=config.stop,
        stop_token_ids=config.stop_token_ids,
        seed=config.seed,
        generation=generation,
        samples=config.samples_per_prompt,
    )


def digest(config: Config, task: Task) -> str:
    """Return 16 hexadecimal digits over the tokens of training prompts, `DIGESTED` at most, as the model reads them."""
    count = len(task.train)
    places = range(count) if count <= DIGESTED else (i * count // DIGESTED for i in range(DIGESTED))
    found = hashlib.blake2b(digest_size=8)
    for ids in engines.tokenizer(config).encode([prompt_of(config, task.train[place]) for place in places]):
        found.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
    return found.hexdigest()


def prompt_of(config: Config, example: Example) -> Prompt:
    """Convert an example to an engine's prompt, with the system prompt in front of chat messages.

    As in TRL, variables of the chat template in the column ``chat_template_kwargs`` go before the settings'.
    Raises DataError if that column holds something other than a mapping.
    """
    content = example.prompt
    if config.system_prompt is not None and not isinstance(content, str):
        system: Message = {"role": "system", "content": config.system_prompt}
        content = (system, *content)
    own = example.columns.get("chat_template_kwargs") or {}
    if not isinstance(own, Mapping) or RENDERING & own.keys():
        raise DataError(
            f"prompt {example.id} has the chat_template_kwargs {own!r:.200}. Give a mapping of variables of the chat "
            "template, none of them " + ", ".join(sorted(RENDERING)) + "."
        )
    given = {name: value for name, value in own.items() if value is not None}  # a table has all names in every row
    return Prompt(example.id, content, {**config.chat_template_kwargs, **given})


def rehearsed(config: Config, prompts: Sequence[Prompt], tools: environments.Tools) -> list[Prompt]:
    """Return conversations' prompts after one message of the model and one reply of an environment with ``tools``.

    Of prompts with equal roles and variables of the chat template, only the first is returned.
    """
    chats = any(not isinstance(prompt.content, str) for prompt in prompts)
    templated = bool(tools) and config.conversation.tools == "template" and chats
    schemas, text = environments.schemas(tools) if templated else [], environments.describe(tools)
    found, turns = [], {(_roles(prompt), repr(prompt.template_kwargs)): prompt for prompt in reversed(prompts)}
    for prompt in reversed(turns.values()):
        content, kwargs, role = prompt.content, prompt.template_kwargs, "user"
        if templated and not isinstance(content, str):
            kwargs, role = {**kwargs, "tools": schemas}, "tool"
        elif tools:
            content = environments.introduced(content, text)
        content = environments.continued(content, "Hello.", [{"role": role, "content": "Hello."}])
        found.append(replace(prompt, content=content, template_kwargs=kwargs))
    return found


def _roles(prompt: Prompt) -> tuple[str, ...] | None:
    return None if isinstance(prompt.content, str) else tuple(message["role"] for message in prompt.content)
