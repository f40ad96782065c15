"""What is checked of a task before a run: prompts that begin an answer, or hold it."""

from __future__ import annotations

import pytest

from seedtune.config.config import Config
from seedtune.errors import DataError
from seedtune.rollouts.prepare import prepare
from seedtune.tasks.from_config import TaskInputs

ANSWERED = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


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
