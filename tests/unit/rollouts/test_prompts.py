"""What the model reads is part of a run: its prompts' digest, and the prompts of each generation."""

from __future__ import annotations

import json

import numpy as np
import pytest

import models
from seedtune.config.config import Config
from seedtune.engines.toy.engine import Characters
from seedtune.errors import DataError
from seedtune.numerics import noise
from seedtune.rollouts import prompts
from seedtune.rollouts.prompts import digest
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import chat, examples


def task(*texts) -> Task:
    return Task("t", examples([{"prompt": prompt} for prompt in texts], "train"), (), ())


def test_the_digest_of_prompts_is_of_what_the_model_reads(tmp_path):
    folder = models.save_family("llama", tmp_path / "model")
    config, work = Config(model=str(folder)), task("Hi", chat("Hello"))
    found = digest(config, work)
    assert digest(config, work) == found
    assert digest(config.replace(system_prompt="Be brief."), task(chat("Hello"))) != digest(config, task(chat("Hello")))
    assert digest(config, task("H", "i")) != digest(config, task("Hi"))
    models.tokenizer(f"{models.CHAT_TEMPLATE} ").save_pretrained(folder)
    assert digest(config, work) != found
    assert digest(config, task("Hi")) == digest(config.replace(model=str(folder)), task("Hi"))
    models.tokenizer().save_pretrained(folder)
    assert digest(config, work) == found
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert digest(config, work) != found


def test_a_row_has_variables_of_the_template_of_its_own():
    rows = [{"prompt": chat("Hi"), "chat_template_kwargs": own} for own in ({"a": 1, "b": None}, None)]
    config = Config(chat_template_kwargs={"a": 0, "c": 2})
    kwargs = [prompts.prompt_of(config, row).template_kwargs for row in examples(rows, "train")]
    assert kwargs == [{"a": 1, "c": 2}, {"a": 0, "c": 2}]


@pytest.mark.parametrize("own", ["thinking", [1], {"tokenize": True}], ids=repr)
def test_what_is_no_variable_of_a_template_is_told_with_its_row(own):
    (row,) = examples([{"prompt": chat("Hi"), "chat_template_kwargs": own}], "train")
    with pytest.raises(DataError, match=r"prompt 0 has the chat_template_kwargs .* Give a mapping of variables"):
        prompts.prompt_of(Config(), row)


def drawn(rows: int, size: int, generations: range) -> list[list[int]]:
    """The row indices of generations, each drawn as a resumed run does, without what was computed before."""
    config = Config(prompts_per_generation=size, seed=3)
    numbered, found = task(*map(str, range(rows))), []
    for generation in generations:
        prompts._order.cache_clear()
        found.append([int(example.prompt) for example in prompts.drawn(config, numbered, generation)])
    return found


SIZES = [(10, 3), (10, 4), (10, 6), (10, 7), (10, 9), (11, 8), (12, 8), (7, 5), (5, 4), (9, 5), (3, 2)]


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_no_prompt_comes_twice_in_a_generation_and_all_come_once_in_an_epoch(rows, size):
    batches = drawn(rows, size, range(6 * rows))
    assert all(len(set(batch)) == size for batch in batches)
    whole = [row for batch in batches for row in batch]
    epochs = [whole[first : first + rows] for first in range(0, len(whole), rows)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs if len(epoch) == rows)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (12, 12), (12, 1), (12, 100)])
def test_batches_that_divide_the_rows_are_those_of_plain_permutations(rows, size):
    whole = [row for batch in drawn(rows, size, range(60)) for row in batch]
    key = noise.key_for(3, noise.Purpose.PROMPT_ORDER)
    for epoch, first in enumerate(range(0, len(whole) - rows + 1, rows)):
        plain = noise.permutation(noise.Address(key, noise.Stream.ORDER, epoch), rows)
        np.testing.assert_array_equal(whole[first : first + rows], plain)


def test_a_digest_of_many_prompts_is_of_some_spread_evenly(monkeypatch):
    monkeypatch.setattr(prompts, "DIGESTED", 4)
    seen = []
    read = Characters.encode
    monkeypatch.setattr(Characters, "encode", lambda self, some: read(self, seen.extend(some) or some))
    digest(Config(engine="toy", task="toy"), task(*"abcdefghij"))
    assert [prompt.content for prompt in seen] == ["a", "c", "f", "h"]
