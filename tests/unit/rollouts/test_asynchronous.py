"""Settings that asynchronous runs refuse; the other parts of the package do not depend on such runs."""

from __future__ import annotations

import pytest

from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.trainer import ESTrainer
from straggling import config

REFUSED = {
    "sigma_schedule.kind=cosine": {"sigma_schedule": {"kind": "cosine", "over": 5}},
    "noise_reuse=2": {"noise_reuse": 2},
    "lookahead.radius=0.1": {"lookahead": {"radius": 0.1}},
    "shaping=per_prompt": {"shaping": "per_prompt"},
    "multi_objective_aggregation=normalize_then_sum": {"multi_objective_aggregation": "normalize_then_sum"},
    "environment='number_guessing'": {"environment": "number_guessing"},
    "objective=logprob": {"objective": "logprob"},
    "reward_batch=prompt": {"reward_batch": "prompt"},
}


@pytest.mark.parametrize(("setting", "settings"), REFUSED.items(), ids=REFUSED)
def test_what_needs_whole_generations_is_refused_with_the_value_and_the_fix(tmp_path, setting, settings):
    with pytest.raises(
        ConfigError, match=rf"ray\.max_staleness=2 .*does not go with {setting}: .*or ray\.max_staleness=0"
    ):
        config(tmp_path, 2).replace(**settings)
    assert config(tmp_path, 0).replace(**settings).max_staleness == 0


def test_a_way_back_does_not_go_with_updates_that_do_not_wait(tmp_path):
    with pytest.raises(ConfigError, match=r"rollback_on_fall=yes does not go with ray.max_staleness=2 .*leave one out"):
        config(tmp_path, 2).replace(rollback_on_fall="yes")
    assert config(tmp_path, 2).replace(alpha=None).alpha is None


def test_a_task_that_is_a_conversation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ray\.max_staleness=2 .*task 'number_guessing' is a conversation"):
        ESTrainer(args=config(tmp_path / "run", 2).replace(task="number_guessing"))


def test_a_section_of_another_engine_stays_silent():
    plain = Config(engine="toy", task="toy", model="toy", ray={"max_staleness": 2})
    assert plain.rolls_back
    assert plain.max_staleness == 0
    assert "max_staleness" not in plain.identity()
