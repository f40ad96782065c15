"""Every code block and command of README.md and docs/ is executed, or says what it needs that a test has not.

A page is one session in a folder of its own: its blocks run in their order, with a tiny model under the built-in name,
few members, few generations and short answers.  Runs that a page takes for granted (``runs/NAME``) are trained when a
command first reads them.  A block with ``title="FILE"`` is that file.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from typer.core import TyperGroup

import documents
import hub_stand_in
import models
import seedtune
from benches import evidence
from documents import ROOT, Block
from seedtune.cli.app import app
from seedtune.config import config as config_module
from seedtune.config.config import Config
from seedtune.config.foreign_data import parse_yaml
from seedtune.engines.transformers import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
"""Of huggingface_hub's own uploads."""

RUNS = {
    **{name: {"task": name} for name in ("countdown", "conciseness")},
    "mine": {"log_completions": True},
    "b": {"sigma": 0.008},
}
"""Settings of the runs that pages take for granted; all others train on `right_and_brief`."""

ELSEWHERE = {
    "watch": "tests/integration/cli/test_report_and_watch.py",
    "init": "tests/integration/cli/test_init.py",
    "doctor": "tests/unit/cli/doctor",
    "--install-completion": "tests/integration/cli/test_help_and_json.py",
}
"""Commands that wait for a user, or start every engine: only their options are checked here."""

FILES = {
    "data.jsonl": '{"prompt": "1 + 1 =", "answer": "2", "solution": "2"}\n' * 8,
    "rewards.py": "def my_reward(completions, **columns):\n    return [float(len(text)) for text in completions]\n",
}
"""Files that pages take for granted, unless they show them."""

DIFFER = {"diff": 1}
"""Exit codes, other than 0, that say a result and no failure."""


def small(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a page, at a size that trains in a second; the toy engine does so anyway."""
    if settings.get("engine") == "toy":
        return dict(settings)
    most = {"population": 4, "prompts_per_generation": 2, "max_completion_length": 4}
    result = dict(settings)
    generations = result.get("generations", 100)
    result["generations"] = generations if generations <= 5 else 2 if generations <= 10 else 4
    result |= {name: min(result.get(name, most[name]), most[name]) for name in most}
    return {"eval_prompts": 2, "reward_workers": 0, **result}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model with room for the prompts of every task, a token a character."""
    folder = models.save_family("llama", tmp_path_factory.mktemp("model"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    return folder


class Session:
    """The folder of one page, in which its blocks run in order."""

    def __init__(self, folder: Path, command: Callable[..., tuple[int, str, str]], stdin: Callable[[str], None]):
        self.folder, self.command, self.stdin = folder, command, stdin
        shutil.copytree(ROOT / "examples", folder / "examples")

    def prepare(self, blocks: list[Block]) -> None:
        """Write the files that a page shows or takes for granted, and train the runs that its programs read."""
        for name, text in {**FILES, **{block.file: block.text for block in blocks if block.file}}.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        for block in blocks:
            for name in re.findall(r"runs/[\w-]+", block.text) if block.language == "python" else ():
                if "output_dir" not in block.text:
                    self.take_for_granted(name)

    def take_for_granted(self, run: str) -> None:
        """Train a run that a page reads, unless it is there."""
        if not Path(run).exists():
            train(run)

    def run(self, block: Block) -> None:
        """Execute a block as what it is."""
        match block.language:
            case "bash":
                for line in documents.commands(block.text):
                    self.shell(line)
            case "text":
                assert not block.text.startswith("seedtune"), "a command is bash, or stands after '$ '"
                for line in documents.commands(block.text) if "$ " in block.text else ():
                    self.shell(line)
            case "python":
                if "output_dir" in block.text:
                    forget_runs()
                exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
            case "diff":
                check_changes(block.text)
            case "yaml":
                Config.create(parse_yaml(block.text))
            case "json":
                for line in block.text.splitlines():
                    json.loads(line)
            case _:
                pytest.fail("a block has a language: bash, python, yaml, json, or text for what is printed")

    def shell(self, line: str) -> None:
        """Execute one command."""
        before, pipe, after = line.partition(" | ")
        program, *arguments = shlex.split(after if pipe else before)
        self.stdin(shlex.split(before)[1] if pipe else "Hello\n")
        match program:
            case "seedtune":
                self.seedtune(arguments)
            case "pip":
                check_installable(arguments)
            case "python" if arguments[:2] == ["-m", "benchmarks.evidence"]:
                evidence("__main__").parser().parse_args(arguments[2:])  # test_evidence_cells.py runs them
            case script if script.startswith("scripts/"):
                check_script(ROOT / script)
            case _:
                pytest.fail(f"{program} is neither a command of ours nor marked with what it needs")

    def seedtune(self, arguments: list[str]) -> None:
        if self.elsewhere(arguments):
            return
        for argument in arguments[1:]:
            if arguments[0] != "train" and re.fullmatch(r"runs/[\w-]+", argument):
                self.take_for_granted(argument)
        if arguments[0] == "train":
            forget_runs()
        code, output, errors = self.command(*arguments)
        assert code in (0, DIFFER.get(arguments[0], 0)), output + errors

    def elsewhere(self, arguments: list[str]) -> bool:
        """Whether another test executes a command of this name; its options are checked."""
        test = ELSEWHERE.get(arguments[0])
        if test is None or "--train-dataset" in arguments:
            return False
        assert (ROOT / test).exists()
        check_options(arguments)
        return True


def forget_runs() -> None:
    """Remove all runs: a page may show the same one twice, from the command line and in Python."""
    shutil.rmtree("runs", ignore_errors=True)


def train(folder: str) -> None:
    given = {"task": "right_and_brief", **RUNS.get(Path(folder).name, {})}
    trainer = seedtune.ESTrainer(args=Config.create({"output_dir": folder, "generations": 5, "eval_steps": 1, **given}))
    trainer.train()
    trainer.release()


def check_installable(arguments: list[str]) -> None:
    """Check that a line of ``pip install`` has requirements, and extras that this package has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in arguments:
        if text != "install" and not text.startswith(("-", ".", "constraints")):
            wanted = Requirement(text)
            assert wanted.name != "seedtune" or wanted.extras <= project["optional-dependencies"].keys()


def check_changes(text: str) -> None:
    """Check that the removed and added lines are those in which the twin scripts differ."""
    scripts = [block.text.splitlines() for block in documents.blocks("docs/coming-from-grpo.md")[:2]]
    changed = [(one, other) for one, other in zip(*scripts, strict=True) if one != other]
    assert text.splitlines() == [sign + line for pair in changed for sign, line in zip("-+", pair, strict=True)]


def check_script(path: Path) -> None:
    """Check the syntax of a script, which continuous integration or another test runs."""
    if "python" in path.read_text().splitlines()[0]:
        compile(path.read_text(), path, "exec")
    else:
        subprocess.run(["bash", "-n", path], check=True)


def check_options(arguments: list[str]) -> None:
    """Check that a command and its options are there; placeholders may stand for its arguments."""
    found: Any = typer.main.get_command(app)
    while isinstance(found, TyperGroup) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        found = found.commands.get(name)
        assert found is not None, f"there is no command {name!r}"
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-") and argument != "-"}
    assert given <= options | {"--help"}


@pytest.fixture
def session(tmp_path, model, command, monkeypatch) -> Iterator[Session]:
    # Every configuration passes here once, before its settings are read.
    monkeypatch.setattr(config_module, "check_not_of_grpo", lambda settings: settings.update(small(settings)))
    monkeypatch.setattr(checkpoint, "builtin_folder", lambda alias: model)
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")
    with hub_stand_in.served() as hub:
        hub_stand_in.use(hub, tmp_path / "hub", monkeypatch, token="hf_user")
        yield Session(tmp_path / "page", command, lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text)))


@pytest.mark.parametrize("page", documents.pages())
def test_every_block_of_a_page_is_executed_or_says_what_it_needs(page, session):
    session.prepare(documents.blocks(page))
    for block in documents.blocks(page):
        place = f"{page}:{block.line}"
        if block.needs:
            assert block.needs in documents.NEEDS, place
        elif block.executed_by:
            assert (ROOT / block.executed_by).exists(), place
        else:
            try:
                session.run(block)
            except BaseException as error:
                error.add_note(f"in the block at {place}")
                raise


@pytest.mark.parametrize("page", documents.pages())
def test_commands_in_the_text_are_there(page):
    for line in documents.inline_commands(page):
        try:
            check_options(shlex.split(line)[1:])
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{page}: `{line}`: {error}")


@pytest.mark.parametrize("line", ["trian", "train --no-such-option", "ray shrink", "eval RUN --sets a=1"])
def test_a_misspelt_command_or_option_is_found(line):
    with pytest.raises(AssertionError):
        check_options(shlex.split(line))


@pytest.mark.parametrize("page", documents.pages())
def test_links_between_pages_lead_somewhere(page):
    for target in documents.links(page):
        file, _, anchor = target.partition("#")
        found = (ROOT / page).parent / file if file else ROOT / page
        assert found.exists(), f"{page}: {target}"
        assert not anchor or anchor in documents.anchors(found), f"{page}: {target}"


@pytest.mark.parametrize("notebook", documents.notebooks())
def test_a_notebook_runs_from_top_to_bottom_and_shows_its_outputs(notebook, session):
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = documents.cells(notebook)
    for number, cell in enumerate(cells, start=1):
        exec(compile(cell.text, f"{notebook}, cell {number}", "exec"), space)
        assert cell.shown or not cell.shows, f"cell {number} of {notebook} was saved without its output"
