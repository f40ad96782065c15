"""Pieces of HTML.  Every text goes through `escaped`, every number through `number`: runs come from strangers."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

LARGEST = 1e100
"""Numbers beyond it are treated as unknown, those below its inverse as 0: arithmetic of charts must not overflow."""

_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, reversals of text, and surrogates, which no encoding has."""


def escaped(text: Any) -> str:
    """Return text without markup, also in quoted attributes; control characters become �."""
    return html.escape(_UNSHOWN.sub("\ufffd", str(text)), quote=True)


def known(value: Any) -> float | None:
    """Return a number as a float; None for anything else, NaN and numbers beyond `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST or math.isnan(value):
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def number(value: Any) -> str:
    """Format a number with four digits, whole ones with commas; an unknown one as a dash."""
    found = known(value)
    if found is None:
        return "–"
    if 1000 <= abs(found) < 1e15 or (isinstance(value, int) and abs(found) < 1000):
        return f"{found:,.0f}"
    return f"{found:.4g}"


def per_cent(share: Any) -> str:
    """Format a share in per cent; an unknown one as a dash."""
    found = known(share)
    return "–" if found is None else f"{100 * found:.1f} %"


def duration(seconds: float) -> str:
    """Format seconds in the largest two units: ``8.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left} min" if hours else f"{minutes} min {rest} s"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    left: Collection[str] = (),
) -> str:
    """Render a table of plain texts that scrolls in a region of its own, which the keyboard reaches.

    The first column names its row.  Columns named in ``left`` hold texts, the others numbers.
    """
    kinds = ["" if heading in left else " class=n" for heading in headings]
    head = "".join(f"<th scope=col{kind}>{escaped(cell)}</th>" for kind, cell in zip(kinds, headings, strict=True))
    lines = "".join(f"<tr>{_cells(kinds, row)}</tr>" for row in rows)
    return (
        f'<div class=wide role=region tabindex=0 aria-label="{escaped(caption)}"><table><caption>{escaped(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _cells(kinds: Sequence[str], row: Sequence[str]) -> str:
    first, *rest = (f"{kind}>{escaped(cell)}" for kind, cell in zip(kinds, row, strict=True))
    return f"<th scope=row{first}</th>" + "".join(f"<td{cell}</td>" for cell in rest)


def details(summary: str, content: str) -> str:
    """Render content that opens on demand; "" for no content."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>" if content else ""


def section(key: str, heading: str, *content: str) -> str:
    """Render a section that links reach by its key; "" for no content."""
    body = "".join(content)
    return f"<section id={key} aria-labelledby={key}-h><h2 id={key}-h>{heading}</h2>{body}</section>" if body else ""


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """Keep at most ``most`` rows and the last one, evenly spaced."""
    step = max(1, -(-len(rows) // most))
    return [row for place, row in enumerate(rows) if place % step == 0 or place == len(rows) - 1]
