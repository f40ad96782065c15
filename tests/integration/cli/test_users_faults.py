"""What users give by mistake, from the command to the engine: a line with the value and the fix, never a traceback."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import models
import runs
from seedtune.trainer import ESTrainer

STRICT = """{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
<user>{{ m['content'] }}{% endfor %}"""
USER = {"role": "user", "content": "2 + 2?"}

FILES = {
    "rewards.py": "def score(completions, **_):\n    return [float(len(c)) for c in completions]\n\n\n"
    "def bad(completions, **_):\n    raise ValueError('boom')\n\n\n"
    "def short(completions, **_):\n    return []\n",
    "broken.py": "import nowhere_to_be_found\n",
    "room.py": """
class Room:
    def reset(self):
        return "Hello"

    def look(self, where):
        return where


class Torn:
    def __init__(self):
        raise OSError("no board")

    def reset(self):
        return "Hi"
""",
    "fine.jsonl": '{"prompt": "a"}\n{"prompt": "b"}\n',
    "torn.jsonl": '{"prompt": "a"}\n{"prompt": \n',
    "doubled.jsonl": '{"prompt": "a", "prompt": "b"}\n',
    "surrogate.jsonl": '{"prompt": "a"}\n{"prompt": "\\ud800"}\n',
    "empty.jsonl": "",
    "numbers.jsonl": '{"prompt": 5}\n',
    "ragged.csv": "prompt,answer\na,b,c\n",
    "deep.yaml": "a: " + "[" * 5000 + "\n",
    "bomb.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    + "".join(
        f"k{i}: &k{i} [*{'c' if i == 0 else f'k{i - 1}'}, *{'c' if i == 0 else f'k{i - 1}'}]\n" for i in range(40)
    ),
    "doubled.yaml": "sigma: 0.1\nsigma: 0.2\n",
    "text.yaml": "just text\n",
    "latin.yaml": None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files of every kind, a finished run and a tiny model, which is the working directory meanwhile."""
    root = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (root / name).write_bytes(b"system_prompt: caf\xe9\n" if text is None else text.encode())
    for name, rows in CHATS.items():
        (root / name).write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    models.save_family("llama", root / "tiny", template=STRICT)
    for name, change in MODELS.items():
        models.save_family("llama", root / name, template=STRICT)
        change(root / name)
    ESTrainer(args=runs.toy(root / "run")).train()
    runs.write_config(runs.toy(root / "fresh", toy={"size": 4}), root / "toy.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield root


CHATS = {
    "turns.jsonl": [[USER], [USER, USER]],
    "parts.jsonl": [[{"role": "user", "content": [{"type": "text", "text": "a"}]}]],
    "null.jsonl": [[USER], [{"role": "user", "content": None}]],
    "chats.jsonl": [[USER], [USER]],
}


def _weights(write: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: write(folder / "model.safetensors")


def _quantised(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**settings, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )


MODELS: dict[str, Callable[[Path], object]] = {
    "pointer": _weights(
        lambda file: file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 12345\n")
    ),
    "truncated": _weights(lambda file: file.write_bytes(file.read_bytes()[:1000])),
    "absurd": _weights(lambda file: file.write_bytes(struct.pack("<Q", 2**60) + b"{}")),
    "no-json": lambda folder: (folder / "config.json").write_text("{"),
    "quantised": _quantised,
}

OWN = ("--model", "toy", "--set", "engine=toy", "--set", "output_dir=OUT", "--reward", "rewards.py:score")
TINY = ("train", "--model", "tiny", "--reward", "rewards.py:score", "--dry-run", "--set", "max_completion_length=4")


def toy(*items: str) -> tuple[str, ...]:
    return ("train", "toy.yaml", *(word for item in items for word in ("--set", item)))


def own(data: str, *more: str) -> tuple[str, ...]:
    return ("train", *OWN, "--train-dataset", data, *more)


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    # prompts and templates
    "two user turns": ((*TINY, "--train-dataset", "turns.jsonl"), "row 1"),
    "a system prompt": ((*TINY, "--train-dataset", "chats.jsonl", "--set", "system_prompt=Be brief"), "No system role"),
    "content in parts": ((*TINY, "--train-dataset", "parts.jsonl"), "row 0"),
    "content null": ((*TINY, "--train-dataset", "null.jsonl"), "row 1"),
    "a surrogate": ((*TINY, "--train-dataset", "surrogate.jsonl"), "row 1"),
    "a token beyond the vocabulary": (
        (*TINY, "--train-dataset", "fine.jsonl", "--set", "stop_token_ids=[99999]"),
        "99999",
    ),
    # data
    "a torn line": (own("torn.jsonl"), "line 2"),
    "a doubled key": (own("doubled.jsonl"), "prompt"),
    "no rows": (own("empty.jsonl"), "empty.jsonl"),
    "a number as prompt": (own("numbers.jsonl"), "the prompt 5 is neither text nor a list of messages"),
    "a ragged table": (own("ragged.csv"), "line 2"),
    "no such data": (own("nowhere.jsonl"), "nowhere.jsonl"),
    "no such column": (own("fine.jsonl", "--set", "prompt_column=question"), "question"),
    # rewards, judges, environments
    "no such function": (("train", *OWN[:-1], "rewards.py:scroe", "--train-dataset", "fine.jsonl"), "scroe"),
    "no such file": (("train", *OWN[:-1], "reward.py:score", "--train-dataset", "fine.jsonl"), "reward.py"),
    "a file that fails": (
        ("train", *OWN[:-1], "broken.py:score", "--train-dataset", "fine.jsonl"),
        "nowhere_to_be_found",
    ),
    "a judge without URL": (own("fine.jsonl", "--set", "reward_funcs=[{judge: {base_url: here, model: m}}]"), "here"),
    "a key in a URL": (
        own(
            "fine.jsonl", "--set", "reward_funcs=[{judge: {base_url: 'http://localhost/v1?api_key=s3cret', model: m}}]"
        ),
        "api_key",
    ),
    "a tool without hints": (own("chats.jsonl", "--set", "environment=room.py:Room"), "look"),
    "an environment that fails": (own("fine.jsonl", "--set", "environment=room.py:Torn"), "no board"),
    # models
    "no such model": (("train", "--model", "models/none", *TINY[3:], "--train-dataset", "fine.jsonl"), "models/none"),
    "an unknown home": (
        ("train", "--model", "~no-such-user/m", *TINY[3:], "--train-dataset", "fine.jsonl"),
        "no-such-user",
    ),
    "$UNSET": (toy("output_dir=$UNSET_HERE/run"), "UNSET_HERE"),
    **{
        f"a model that is {name}": (("train", "--model", name, *TINY[3:], "--train-dataset", "fine.jsonl"), name)
        for name in MODELS
    },
    # settings
    "octal": (toy("seed=010"), "010"),
    "sexagesimal": (toy("reward_timeout=1:30"), "1:30"),
    "an empty stop": (toy('stop=[""]'), "stop"),
    "true for a number": (toy("generations=true"), "generations"),
    "a huge sigma": (toy("sigma=1e300"), "sigma"),
    "a huge alpha": (toy("alpha=1e300"), "alpha"),
    "many subspaces": (toy("subspaces=100000"), "subspaces"),
    "a seed of 5,000 digits": (toy("seed=" + "9" * 5000), "seed"),
    "a timeout of a month": (toy("reward_timeout=3e6"), "reward_timeout"),
    "a huge population": (toy("population=1000000000"), "population"),
    "many generations": (("train", "toy.yaml", "--dry-run", "--set", "generations=10000000000"), "generations"),
    "a secret": (toy("vllm.hf_token=hf_abc"), "hf_token"),
    "deep YAML": (("train", "deep.yaml"), "deep.yaml"),
    "a bomb": (("train", "bomb.yaml"), "bomb.yaml"),
    "a doubled setting": (("train", "doubled.yaml"), "sigma"),
    "YAML that is text": (("train", "text.yaml"), "text.yaml"),
    "YAML that is not UTF-8": (("train", "latin.yaml"), "latin.yaml"),
    "a folder as settings": (("train", "tiny"), "tiny"),
    # options
    "a negative limit": (("eval", "run", "--limit", "-5"), "--limit -5"),
    "a negative seed": (("eval", "run", "--seed", "-1"), "--seed -1"),
    "no such generation": (("export", "run", "-o", "out", "--generation", "99"), "99"),
    "a folder that is full": (("export", "run", "-o", "tiny"), "tiny"),
    "no run": (("verify", "tiny"), "tiny"),
    "a second start": (("train", "taken.yaml"), "run"),
    "no pack": (("apply", "fine.jsonl", "-o", "out"), "fine.jsonl"),
    "no such run": (("resume", "nowhere"), "nowhere"),
}


REWARDS = {
    "raises": ("bad", "raised ValueError: boom"),
    "returns too few": ("short", "returned 0 values for 1 completions"),
    "has no memory": ("score", "ran out of memory (reward_memory_mb=1"),
}


@pytest.mark.parametrize(("arguments", "named"), CASES.values(), ids=CASES)
def test_a_mistake_is_one_line_that_names_it(place, command, tmp_path, arguments, named):
    taken = yaml.safe_load((place / "toy.yaml").read_text()) | {"output_dir": str(place / "run")}
    (place / "taken.yaml").write_text(json.dumps(taken))
    before = runs.ledger_bytes(place / "run")
    code, _, errors = command(*(word.replace("OUT", str(tmp_path / "out")) for word in arguments))
    line = runs.only_line(code, errors)
    assert named in line
    assert len(line) < 3000
    assert runs.ledger_bytes(place / "run") == before


@pytest.mark.parametrize(("function", "named"), REWARDS.values(), ids=REWARDS)
def test_a_reward_that_always_fails_ends_the_run_with_a_line_and_shows_the_users_lines_only(
    place, command, tmp_path, function, named
):
    settings = ("--set", f"output_dir={tmp_path / 'run'}", "--set", "reward_memory_mb=1")
    more = settings if function == "score" else settings[:2]
    code, _, errors = command("train", *OWN[:-1], f"rewards.py:{function}", "--train-dataset", "fine.jsonl", *more)
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: the reward function ")
    assert named in errors.splitlines()[-1]
    assert f"{Path('seedtune', 'rewards')}" not in errors
