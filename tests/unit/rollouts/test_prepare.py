"""What is checked of a task before a run: prompts that begin an answer or hold it, and the turns that follow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import models
from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.errors import DataError
from seedtune.rollouts.prepare import prepare
from seedtune.rollouts.prompts import rehearsed
from seedtune.tasks.from_config import TaskInputs
from seedtune.types import Prompt

ANSWERED = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


class Shop:
    """An environment with a tool."""

    def reset(self, **columns) -> None:
        """Begin."""

    def look(self) -> str:
        """
        Look around.

        Returns:
            What there is.
        """
        return "apples"


class Counter:
    """An environment without tools."""

    def reset(self, **columns) -> None:
        """Begin."""

    def step(self, text: str) -> str:
        return text


ROLE = "{% for m in messages %}{% if m['role'] == 'ROLE' %}{{ raise_exception('No ROLE here') }}{% endif %}{% endfor %}"
HI = {"role": "user", "content": "Hi."}


@pytest.mark.parametrize(
    ("environment", "template", "tools", "role"),
    [
        (Shop, "{{ tools }}" + ROLE.replace("ROLE", "tool"), "template", "tool"),
        (Shop, "{{ tools }}" + ROLE.replace("ROLE", "assistant"), "template", "assistant"),
        (Shop, "{{ tools }}" + ROLE.replace("ROLE", "tool"), "text", None),
        (Shop, ROLE.replace("ROLE", "system"), "text", "system"),
        (Counter, ROLE.replace("ROLE", "assistant"), "template", "assistant"),
        (Counter, ROLE.replace("ROLE", "tool"), "template", None),
    ],
)
def test_what_a_template_refuses_in_later_turns_is_refused_before_training(
    environment, template, tools, role, monkeypatch
):
    tokenizer = models.tokenizer(template + "{{ messages[0]['content'] }}")
    sizes = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=99, max_position_embeddings=4096))
    source = SimpleNamespace(tokenizer=lambda: tokenizer, config=lambda: sizes)
    monkeypatch.setattr(engines, "_model_tokenizer", lambda config: ModelTokenizer(source))
    config = Config(model="m", eval_size=0, conversation={"tools": tools})
    inputs = TaskInputs(len, train=[{"prompt": [HI]}], environment=environment)
    if role is None:
        prepare(config, inputs)
        return
    with pytest.raises(DataError, match=f"row 0 of the training data: .* with the role '{role}': No {role} here"):
        prepare(config, inputs)


def test_turns_are_rehearsed_once_for_prompts_of_equal_roles_and_variables():
    prompts = [
        Prompt(0, ({"role": "user", "content": "a"},)),
        Prompt(1, ({"role": "user", "content": "b"},)),
        Prompt(2, ({"role": "system", "content": "s"}, {"role": "user", "content": "c"})),
        Prompt(3, ({"role": "user", "content": "d"},), {"think": True}),
        Prompt(4, "e"),
        Prompt(5, "f"),
    ]
    assert [prompt.id for prompt in rehearsed(Config(), prompts, {})] == [0, 2, 3, 4]


def prepared(*prompts, column: str = "prompt", **settings) -> None:
    config = Config(engine="toy", model="toy", eval_size=0, prompt_column=column, **settings)
    prepare(config, TaskInputs(len, train=[{column: prompt} for prompt in prompts]))


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations"])
def test_conversations_that_hold_the_answer_are_refused(column):
    with pytest.raises(DataError) as caught:
        prepared(ANSWERED[:1], ANSWERED, column=column)
    assert str(caught.value) == (
        f"row 1: its {column!r} end with an answer, which the model would read, 'It is 4.' (so in 1 of 2 rows). Put "
        "the answer into a column of its own, or, if the model is to continue it, set "
        "chat_template_kwargs.continue_final_message=true."
    )
    prepared(ANSWERED[:1], column=column)
    prepared(ANSWERED, column=column, chat_template_kwargs={"continue_final_message": True})


def test_prompts_that_begin_an_answer_are_counted_in_a_warning(caplog):
    prepared(ANSWERED[:1])
    assert not caplog.text
    prepared(ANSWERED, ANSWERED[:1], "text")
    assert "1 of 3 prompts end with an assistant message, which the model continues, first row 0: 'It" in caplog.text
