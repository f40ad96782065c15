"""The code blocks and commands of README.md and of the pages under docs/, and what stands before a block."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDS = ("a GPU", "vLLM", "a cluster", "a network", "TRL")
"""What a block may need that a test has not: `<!-- needs a GPU -->` before it."""

GENERATED = ("settings.md", "api.md")
"""Pages under docs/ that scripts/reference.py writes when the site is built."""

_FENCE = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n+)?^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"\s]+\.\w+)"')
_INLINE = re.compile(r"(?<!`)`(seedtune [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, line, the file that it shows, and what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    file: str | None
    mark: str

    @property
    def needs(self) -> str | None:
        """What this block needs that a test has not."""
        return self.mark.removeprefix("needs ") if self.mark.startswith("needs ") else None

    @property
    def executed_by(self) -> str | None:
        """The test that executes this block elsewhere."""
        return self.mark.removeprefix("executed by ") if self.mark.startswith("executed by ") else None


@cache
def pages() -> tuple[str, ...]:
    """README.md and the pages for users; decisions are records of their day."""
    found = (page.relative_to(ROOT) for page in sorted((ROOT / "docs").rglob("*.md")))
    return ("README.md", "CONTRIBUTING.md", *(page.as_posix() for page in found if "decisions" not in page.parts))


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        info, title = match["info"].strip(), _TITLE.search(match["info"])
        line = text.count("\n", 0, match.start("info")) + 1
        mark = match["mark"] or ""
        shown = re.fullmatch(r'--8<-- "(.+)"\n', match["text"])
        body = (ROOT / shown[1]).read_text(encoding="utf-8") if shown else match["text"]
        found.append(Block(page, line, info.split(" ")[0], body, title and title[1], mark))
    return found


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a shell block, without prompts, comments and continuations; of an output, only those
    after a prompt."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        parts = shlex.split(line, comments=True)
        if parts:
            yield shlex.join(parts).replace("'|'", "|").replace("'<'", "<")


def prose(page: str) -> str:
    """The text of a page outside of blocks."""
    return _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def inline_commands(page: str) -> list[str]:
    """The commands of ``seedtune`` that stand in the text, outside of blocks."""
    return [match[1].replace("\n", " ") for match in _INLINE.finditer(prose(page))]


def links(page: str) -> list[str]:
    """The links and pictures of a page that lead into the repository."""
    found = re.findall(r"\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(page))
    return [target for pair in found for target in pair if target and "://" not in target and target not in GENERATED]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them."""
    text = page.read_text(encoding="utf-8")
    text += "".join((ROOT / name).read_text(encoding="utf-8") for name in re.findall(r'--8<-- "([^"]+)"', text))
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook with code, and whether it was saved with an output."""

    text: str
    shown: bool

    @property
    def shows(self) -> bool:
        """Whether running this cell shows something: it prints, or ends with a value."""
        return "print(" in self.text or isinstance(ast.parse(self.text).body[-1], ast.Expr)


def notebooks() -> list[str]:
    return sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook: str) -> list[Cell]:
    """The cells of a notebook that have code."""
    found = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    return [Cell("".join(one["source"]), bool(one["outputs"])) for one in found if one["cell_type"] == "code"]
