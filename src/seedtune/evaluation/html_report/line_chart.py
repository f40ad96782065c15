"""Charts as SVG without scripts: lines with bands, with a description and a table of the data beside them.

Only the plot itself is SVG, stretched to the width of the page with strokes of constant width; titles, legend and axis
labels are HTML, so that text is as large on a phone as on a screen.  Series differ by colour and by dashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from seedtune.evaluation.html_report.markup import details, escaped, number, table, thinned

WIDTH, HEIGHT = 1000, 300
"""Units of the plot, which is stretched to any size."""

COLOURS = 6
DASHES = ("", "7 4", "2 4", "10 3 2 3")
"""Colours of the stylesheet, and dashes that series of the same colour are told apart by."""

POINTS, ROWS = 600, 24
"""Most pairs of extremes that a line is drawn with, and most rows of a chart's table."""


class Point(NamedTuple):
    """A value at a generation."""

    x: float
    y: float


class BandPart(NamedTuple):
    """The range of a band at a generation."""

    x: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A line of points by ascending generation, and the band around it."""

    name: str
    points: Sequence[Point]
    band: Sequence[BandPart] = ()
    dots: bool = False
    """Mark every point: it was measured, and the line between two was not."""

    filled: bool = False
    """The band is an area of a stack and gets its full colour."""

    style: int = 0
    """Its colour and dashes, by its place in the chart."""


class Frame(NamedTuple):
    """The ranges of both axes."""

    left: float
    right: float
    low: float
    high: float

    def at(self, x: float, y: float) -> str:
        """Return the place of a point in the plot's units."""
        across = WIDTH * (x - self.left) / (self.right - self.left)
        return f"{across:.5g} {HEIGHT * (self.high - y) / (self.high - self.low):.4g}"


def figure(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    about: str = "",
    text: Callable[[float], str] = number,
    floor: float | None = None,
) -> str:
    """Render a chart of all series that have points; "" if none has.

    ``about`` says what is shown, ``text`` formats values, and the value axis includes ``floor``.
    """
    drawn = [replace(line, style=place) for place, line in enumerate(series) if line.points]
    if not drawn:
        return ""
    frame, ticks = _frame(drawn, floor)
    paths = "".join(_drawn(line, frame) for line in drawn)
    return (
        f"<figure id={key}><figcaption><strong>{escaped(title)}</strong> {escaped(about)}</figcaption>"
        f"{_legend(drawn)}<div class=plot><div class=y aria-hidden=true>{_labels(ticks, frame, text)}</div>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio=none role=img aria-labelledby="{key}-t {key}-d">'
        f"<title id={key}-t>{escaped(title)}</title><desc id={key}-d>"
        f"{escaped(' '.join(_said(line, text) for line in drawn))}</desc>{_grid(ticks, frame)}{paths}</svg>"
        f"<div class=x aria-hidden=true>{_generations(frame)}</div></div>"
        f"{details('Description and data', _data(title, drawn, text))}</figure>"
    )


def _frame(series: Sequence[Series], floor: float | None) -> tuple[Frame, list[float]]:
    """Return the ranges of the axes, and the values of the grid."""
    xs = [point.x for line in series for point in line.points]
    ys = [point.y for line in series for point in line.points]
    ys += [edge for line in series for part in line.band for edge in (part.low, part.high)]
    ys += [] if floor is None else [floor]
    low, high = min(ys), max(ys)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / 4)
    ticks = [place * step for place in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return Frame(min(xs), max(max(xs), min(xs) + 1), ticks[0], ticks[-1]), ticks


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)


def _drawn(line: Series, frame: Frame) -> str:
    colour, dash = line.style % COLOURS, DASHES[line.style % len(DASHES)]
    kind = "area" if line.filled else "band"
    shape = f'<path class="{kind} c{colour}" d="{_closed(thinned(line.band, POINTS), frame)}"/>' if line.band else ""
    if line.filled:
        return shape
    points = _extremes(line.points)
    stroke = f'<path class="line c{colour}" stroke-dasharray="{dash}" d="{_open(points, frame)}"/>'
    dots = "".join(f"M{frame.at(*point)}h0" for point in points) if line.dots or len(points) == 1 else ""
    return f'{shape}{stroke}<path class="dots c{colour}" d="{dots}"/>' if dots else shape + stroke


def _extremes(points: Sequence[Point]) -> list[Point]:
    """Keep the lowest and the highest of every few points, so that a long line keeps its peaks."""
    size = -(-len(points) // POINTS)
    if size <= 2:
        return list(points)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    ends = [{min(group, key=lambda point: point.y), max(group, key=lambda point: point.y)} for group in groups]
    return [point for pair in ends for point in sorted(pair)]


def _open(points: Iterable[Point], frame: Frame) -> str:
    return "M" + "L".join(frame.at(*point) for point in points)


def _closed(band: Sequence[BandPart], frame: Frame) -> str:
    edges = [frame.at(part.x, part.high) for part in band] + [frame.at(part.x, part.low) for part in reversed(band)]
    return f"M{'L'.join(edges)}Z"


def _legend(drawn: Sequence[Series]) -> str:
    if len(drawn) == 1 and not drawn[0].band:
        return ""
    items = "".join(f"<li>{_key(line)}{escaped(line.name)}</li>" for line in drawn)
    return f"<ul class=legend>{items}</ul>"


def _key(line: Series) -> str:
    """Draw a short piece of a series, as the legend shows it."""
    frame = Frame(0.0, 1.0, 0.0, 1.0)
    band = [BandPart(0, 0, 1), BandPart(1, 0, 1)] if line.band else []
    piece = replace(line, points=[Point(0.1, 0.5), Point(0.9, 0.5)], band=band)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio=none'
    return f"<svg {box} aria-hidden=true>{_drawn(piece, frame)}</svg>"


def _grid(ticks: Sequence[float], frame: Frame) -> str:
    lines = "".join(f"M{frame.at(frame.left, tick)}H{WIDTH}" for tick in ticks)
    return f'<path class=grid d="{lines}"/>'


def _labels(ticks: Sequence[float], frame: Frame, text: Callable[[float], str]) -> str:
    return "".join(
        f'<span style="top:{100 * (frame.high - tick) / (frame.high - frame.low):.4g}%">{escaped(text(tick))}</span>'
        for tick in ticks
    )


def _generations(frame: Frame) -> str:
    middle = round((frame.left + frame.right) / 2)
    return f"<span>{frame.left:,.0f}</span><span>generation {middle:,}</span><span>{frame.right:,.0f}</span>"


def _said(line: Series, text: Callable[[float], str]) -> str:
    """Describe a line in a sentence, for readers who do not see it."""
    first, last = line.points[0], line.points[-1]
    low, high = (choose(line.points, key=lambda point: point.y) for choose in (min, max))
    if first == last:
        return f"{line.name}: {text(first.y)} at generation {first.x:,.0f}."
    return (
        f"{line.name}: from {text(first.y)} at generation {first.x:,.0f} to {text(last.y)} at {last.x:,.0f}, "
        f"lowest {text(low.y)} at {low.x:,.0f}, highest {text(high.y)} at {high.x:,.0f}."
    )


def _data(title: str, series: Sequence[Series], text: Callable[[float], str]) -> str:
    """Render what `_said` says, and a table of evenly spaced generations."""
    columns = [{point.x: point.y for point in line.points} for line in series]
    bands = [{part.x: part for part in line.band} if not line.filled else {} for line in series]
    shown = thinned(sorted({x for column in columns for x in column}), ROWS)
    rows = [
        (f"{x:,.0f}", *(_cell(x, column, band, text) for column, band in zip(columns, bands, strict=True)))
        for x in shown
    ]
    said = "".join(f"<li>{escaped(_said(line, text))}</li>" for line in series)
    return f"<ul>{said}</ul>{table(('generation', *(line.name for line in series)), rows, caption=title)}"


def _cell(x: float, column: dict[float, float], band: dict[float, BandPart], text: Callable[[float], str]) -> str:
    if x not in column:
        return ""
    around = f" [{text(band[x].low)}, {text(band[x].high)}]" if x in band else ""
    return text(column[x]) + around
