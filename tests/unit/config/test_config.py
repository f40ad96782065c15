"""Configuration: YAML, overrides, and errors that name the setting, its value and the fix."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml

from seedtune.config.config import Config
from seedtune.config.trl_names import COUNTERPARTS
from seedtune.config.yaml_file import load_config, override
from seedtune.errors import ConfigError


def error_of(settings) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.create(settings)
    return str(caught.value)


def load(tmp_path, text: str, *sets: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, sets)


def test_a_file_and_overrides_make_a_configuration(tmp_path):
    config = load(tmp_path, "sigma: 0.01\ntoy:\n  size: 8\n", "sigma=1e-3", "toy.delay=2", "model=mine")
    assert (config.sigma, config.toy.size, config.toy.delay, config.model) == (1e-3, 8, 2.0, "mine")


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load(tmp_path, "") == Config()


@pytest.mark.parametrize("make", [Config.create, lambda settings: Config(**settings)], ids=["create", "keywords"])
def test_a_setting_of_grpo_is_answered_with_its_counterpart(make):
    said = "num_generations is a setting of GRPO, not of evolution strategies: population is the number of completions"
    with pytest.raises(ConfigError, match=said):
        make({"output_dir": "run", "learning_rate": 0.003, "num_generations": 8})
    assert make({"output_dir": "run", "learning_rate": 0.003}).alpha == 0.003


def test_settings_of_grpo_are_none_of_ours_and_their_counterparts_are():
    assert not COUNTERPARTS.keys() & Config.model_fields.keys()
    assert "learning_rate" not in COUNTERPARTS
    words = {word for text in COUNTERPARTS.values() for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", text)}
    allowed = {
        "save_model",
        "push_to_hub",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "max_model_len",
        "max_turns",
    }
    assert words - allowed <= Config.model_fields.keys()


def test_overrides_are_read_as_yaml(tmp_path):
    config = load(tmp_path, "", "antithetic=false", "stop=[a, b]", "chat_template_kwargs.enable_thinking=false")
    assert config.antithetic is False
    assert config.stop == ("a", "b")
    assert load(tmp_path, "", "vllm.kv_cache_memory_bytes=2e9").vllm.option("kv_cache_memory_bytes") == 2_000_000_000
    assert config.chat_template_kwargs == {"enable_thinking": False}


def test_a_value_may_hold_an_equals_sign(tmp_path):
    assert load(tmp_path, "", "system_prompt=a=b").system_prompt == "a=b"


def test_overriding_leaves_the_given_settings_alone():
    settings = {"toy": {"size": 8}}
    assert override(settings, ["toy.size=9"]) == {"toy": {"size": 9}}
    assert settings == {"toy": {"size": 8}}


def test_a_dumped_configuration_is_read_back_exactly(tmp_path):
    config = Config(sigma=1 / 3, alpha=1e-7, seed=2**64 - 1, stop=("\n", "on"), system_prompt="σ: é\u2028")
    dumped = yaml.safe_dump(config.model_dump(mode="json"))
    assert load(tmp_path, dumped) == config


@pytest.mark.parametrize("item", ["sigma", "=3", " =3"])
def test_an_override_without_key_and_value_says_the_form(tmp_path, item):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load(tmp_path, "", item)


def test_an_override_into_a_plain_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="sigma is a value, not a section"):
        load(tmp_path, "sigma: 1", "sigma.x=1")


def test_an_override_goes_into_data_that_are_named_by_their_path_alone(tmp_path):
    config = load(tmp_path, "train_dataset: org/data", "train_dataset.split=test", "eval_dataset.path=org/other")
    assert (config.train_dataset.path, config.train_dataset.split) == ("org/data", "test")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"sigmaa": 1}, ["unknown setting 'sigmaa'", "Did you mean 'sigma'?"]),
        ({"poplation": 1}, ["'poplation'", "Did you mean 'population'?"]),
        ({"toy": {"sise": 3}}, ["unknown setting 'toy.sise'", "Did you mean 'size'?"]),
        ({"transformers": {"devise": "x"}}, ["'transformers.devise'", "Did you mean 'device'?", "max_rows"]),
        ({"transformers": {"dtype": "x"}}, ["'transformers.dtype'. It is a top-level setting: dtype. Known: device"]),
        ({"zzzzzz": 1}, ["unknown setting 'zzzzzz'. Known: ", "sigma"]),
    ],
    ids=str,
)
def test_an_unknown_key_is_an_error_with_the_nearest_known_one(settings, parts):
    message = error_of(settings)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"sigma": "big"}, "sigma='big': must be a number"),
        ({"sigma": 0}, "sigma=0: must be greater than 0"),
        ({"sigma": -0.1}, "sigma=-0.1: must be greater than 0"),
        ({"sigma": math.inf}, "sigma=inf: must be a finite number"),
        ({"sigma": math.nan}, "sigma=nan: must be"),
        ({"alpha": 0}, "alpha=0: must be greater than 0"),
        ({"population": 1.5}, "population=1.5: must be a valid integer"),
        ({"population": 1}, "population=1: must be greater than or equal to 2"),
        ({"seed": -1}, "seed=-1: must be greater than or equal to 0"),
        ({"seed": 2**64}, f"seed={2**64}: must be less than {2**64}"),
        ({"perturbation": "rank1"}, "perturbation='rank1': must be 'lowrank', 'flipout' or 'gaussian'"),
        ({"weights_dtype": "bfloat16"}, "weights_dtype='bfloat16': must be 'float32' or 'model'"),
        ({"trainable": 5}, "trainable=5: must be a list, like "),
        ({"shaping": "rank"}, "shaping='rank': must be 'zscore', 'per_prompt', 'centered_rank' or 'none'"),
        ({"model": 5}, "model=5: must be text: put it into quotes"),
        ({"top_p": 1.5}, "top_p=1.5: must be less than or equal to 1"),
        ({"toy": 5}, "toy=5: must be a mapping, like "),
        ({"toy": {"size": 0}}, "toy.size=0: must be greater than or equal to 1"),
        (
            {"vllm": {"max_model_len": "4k"}},
            "vllm={'max_model_len': '4k'}: max_model_len='4k' must be a whole number of tokens, at least 1",
        ),
        (
            {"vllm": {"max_model_len": 0}},
            "vllm={'max_model_len': 0}: max_model_len=0 must be a whole number of tokens, at least 1",
        ),
        ({"vllm": {"enforce_eager": 0}}, "vllm={'enforce_eager': 0}: enforce_eager=0 must be true or false"),
    ],
    ids=str,
)
def test_a_bad_value_is_named_with_its_limit(settings, start):
    assert error_of(settings).startswith(start)


def test_an_odd_population_of_pairs_says_both_ways_out():
    assert error_of({"population": 7}) == (
        "population=7 is odd, but antithetic pairs need an even one: use 8, or antithetic=false"
    )
    assert Config(population=7, antithetic=False).population == 7


@pytest.mark.parametrize("name", ["tokenize", "max_length", "return_dict", "padding", "messages"])
def test_template_arguments_that_a_template_does_not_have_are_refused(name):
    message = error_of({"chat_template_kwargs": {"enable_thinking": False, name: True}})
    assert message.startswith(f"chat_template_kwargs.{name}=True is no variable of a chat template")


def test_a_rank_without_low_rank_is_not_ignored():
    assert error_of({"perturbation": "gaussian", "rank": 4}).startswith(
        "rank=4 means nothing with perturbation=gaussian"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "perturbation": "flipout"}, "rank=2 means nothing with perturbation=flipout"),
        ({"shared_noise": 2}, "shared_noise=2 means nothing with perturbation=lowrank"),
        ({"perturbation": "flipout", "shared_noise": 9, "population": 8}, "shared_noise=9 is more than population=8"),
        ({"perturbation": "flipout", "subspaces": 2}, "subspaces=2 does not go with perturbation=flipout"),
    ],
)
def test_settings_that_a_perturbation_does_not_have_are_not_ignored(settings, message):
    assert error_of(settings).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_prompt": 4}, "samples_per_prompt=4 with temperature=0 gives equal samples: use a temperature"),
        ({"objective": "pass_at_k", "temperature": 0.7}, "objective=pass_at_k with samples_per_prompt=1 is the mean"),
        ({"objective": "majority_at_k"}, "objective=majority_at_k with samples_per_prompt=1 is the mean"),
        ({"objective": "pass@k"}, "objective='pass@k': must be 'mean', 'pass_at_k', 'majority_at_k'"),
        ({"objective": "logprob", "samples_per_prompt": 2, "temperature": 0.7}, "objective=logprob generates nothing"),
        ({"objective": "choice_accuracy", "temperature": 0.7}, "so temperature=0.7 has no effect"),
        ({"objective": "logprob", "stop": ["."]}, "so stop=('.',) has no effect"),
        ({"objective": "logprob", "kl_steps": 5}, "so kl_steps=5 has no effect"),
        ({"objective": "logprob", "environment": "number_guessing"}, "so environment='number_guessing' has no effect"),
        ({"likelihood": {"answer_column": "x"}}, "likelihood.answer_column='x' has no effect"),
        ({"samples_per_prompt": 0}, "samples_per_prompt=0: must be greater than or equal to 1"),
    ],
    ids=str,
)
def test_samples_that_cannot_differ_or_be_chosen_from_are_refused(settings, message):
    assert message in error_of(settings)


def test_an_objective_of_several_samples_is_part_of_a_runs_identity():
    several = Config(samples_per_prompt=4, temperature=0.7)
    assert several.replace(objective="pass_at_k").identity() != several.identity()


def test_every_mistake_is_told_at_once():
    assert error_of({"sigma": 0, "rank": 0}).count(": must be") == 2


def test_replacing_validates_again():
    assert Config().replace(rank=4).rank == 4
    with pytest.raises(ConfigError, match="rank=0"):
        Config().replace(rank=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not valid YAML"), ("- a\n", "holds list, not settings"), ("5", "holds int")],
)
def test_a_file_that_holds_no_settings_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not valid YAML: 'utf-8' codec can't decode"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", ["sigma", "alpha"])
def test_auto_is_the_word_for_what_a_run_finds_by_itself(tmp_path, name):
    assert getattr(Config(), name) is None
    assert load(tmp_path, f"{name}: auto\n") == Config.create({name: "auto"}) == Config()
    assert load(tmp_path, f"{name}: 0.5\n", f"{name}=auto") == Config()
    assert error_of({name: "automatic"}).startswith(f"{name}='automatic': must be a number")


def test_a_run_says_how_it_finds_sigma_and_alpha_or_their_values():
    assert (Config().sigma_words(), Config().step_words()) == ("σ auto (measured at the start)", "α auto")
    given = Config(sigma=0.006, alpha=0.5)
    assert (given.sigma_words(), given.step_words()) == ("σ 0.006", "α 0.5")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"alpha": 0.1}, False),
        ({"alpha": 0.1, "rollback_on_fall": "yes"}, True),
        ({"rollback_on_fall": "no"}, False),
        ({"rollback_on_fall": False}, False),
        ({"engine": "ray", "ray": {"max_staleness": 1}}, False),
        ({"engine": "ray"}, True),
    ],
    ids=str,
)
def test_a_run_goes_back_unless_alpha_is_given_or_updates_do_not_wait(settings, expected):
    assert Config.create(settings).rolls_back is expected


def test_learning_rate_is_another_spelling_of_alpha(tmp_path):
    same = Config(alpha=0.02)
    assert Config.create({"learning_rate": 0.02}) == same
    assert Config(learning_rate=0.02) == same
    assert Config(alpha=0.5).replace(learning_rate=0.02) == same
    assert load(tmp_path, "learning_rate: 2e-2\n") == same
    assert load(tmp_path, "learning_rate: 0.5\n", "alpha=0.02") == same
    assert load(tmp_path, "alpha: 0.5\n", "learning_rate=0.02") == same
    assert "learning_rate" not in same.model_dump()
    assert same.identity()["alpha"] == 0.02


def test_two_spellings_of_alpha_that_differ_are_refused(tmp_path):
    assert Config.create({"alpha": 0.1, "learning_rate": 0.1}).alpha == 0.1
    message = "alpha=0.1 and learning_rate=0.2 are two names of one setting, and differ: give one of them"
    assert error_of({"alpha": 0.1, "learning_rate": 0.2}) == message
    with pytest.raises(ConfigError, match="two names of one setting"):
        load(tmp_path, "", "alpha=0.1", "learning_rate=0.2")
    assert error_of({"learning_rate": 0}).startswith("alpha=0: must be greater than 0")


INCIDENTAL = {
    "output_dir": "elsewhere",
    "generations": 7,
    "eval_steps": 3,
    "eval_prompts": 3,
    "logging_steps": 3,
    "save_steps": 3,
    "save_total_limit": 3,
    "toy": {"delay": 3.0},
    "products": "library",
    "trust_remote_code": True,
    "transformers": {
        "device": "cuda",
        "weights_folder": "x",
        "max_rows": 1,
    },
}


@pytest.mark.parametrize("name", INCIDENTAL)
def test_identity_leaves_out_what_results_do_not_depend_on(name):
    config = Config(engine="toy")
    assert config.replace(**{name: INCIDENTAL[name]}).identity() == config.identity()


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 0.5},
        {"seed": 1},
        {"rank": 2},
        {"perturbation": "gaussian"},
        {"weights_dtype": "model"},
        {"trainable": ("*.weight",)},
        {"trainable": ("!*.bias",)},
        {"dtype": "bfloat16"},
        {"shaping": "per_prompt"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"samples_per_prompt": 4, "temperature": 0.7},
        {"toy": {"size": 3}},
        {"stop": ("x",)},
    ],
    ids=str,
)
def test_identity_holds_what_results_depend_on(change):
    config = Config(engine="toy")
    assert config.replace(**change).identity() != config.identity()


def test_identity_holds_the_settings_of_the_engine_in_use_only():
    assert "transformers" not in Config(engine="toy").identity()
    assert "toy" not in Config().identity()
    assert "device" not in Config().identity()["transformers"]
    assert Config().replace(transformers={"max_rows": 1}).identity() != Config().identity()


SECRET = "hf_0123456789abcdef"


@pytest.mark.parametrize(
    "given",
    [
        {"engine": "vllm", "vllm": {"hf_token": SECRET}},
        {"engine": "vllm", "vllm": {"model_loader_extra_config": {"auth_token": SECRET}}},
        {"task_args": {"api_key": SECRET}},
        {"chat_template_kwargs": {"password": SECRET}},
        {"hf_token": SECRET},
    ],
)
def test_a_secret_is_refused_without_repeating_it(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is a secret, and settings are written into files") as caught:
        Config.create(given)
    assert SECRET not in str(caught.value)


def test_words_that_only_look_like_secrets_are_taken() -> None:
    Config.create({"chat_template_kwargs": {"eos_token": "</s>", "key": "a"}, "task_args": {"max_tokens": 3}})
    Config.create({"engine": "vllm", "vllm": {"hf_token": True, "max_num_batched_tokens": 4096}})


def test_places_and_tokens_of_vllm_are_no_part_of_a_run(tmp_path) -> None:
    options = {"max_model_len": 64, "download_dir": str(tmp_path), "hf_token": True}
    assert Config.create({"engine": "vllm", "vllm": options}).identity()["vllm"] == {
        **Config.create({"engine": "vllm"}).identity()["vllm"],
        "max_model_len": 64,
    }
