"""Line and point charts on a logarithmic axis, as SVG text; colours are the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

LOWEST = 1e-17  # where zeros are drawn
ROW = 24  # height of the row below the axis
RADIUS = 9  # of a numbered mark


@dataclass
class Series:
    """Values at x; `style` is a CSS class; `titles` are shown when a point is pointed at."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    line: bool = True
    points: bool = False
    titles: Sequence[str] = ()
    alike: str = ""  # how it is distinguished besides colour: "ring", "square", "diamond", "cross"


@dataclass
class Band:
    """A filled range from the axis's lower end to `y`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "noise"


@dataclass
class Mark:
    """A numbered mark on the chart."""

    x: float
    y: float
    text: str
    title: str = ""


@dataclass
class Strip:
    """Positions on the x axis that have no value: crosses in a separate row below the axis."""

    label: str
    x: Sequence[float]
    style: str
    titles: Sequence[str] = ()


@dataclass
class Chart:
    """One chart with a linear x axis and a logarithmic y axis."""

    series: Sequence[Series]
    y_label: str
    x_label: str
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    groups: Sequence[tuple[float, float, str]] = ()  # (from, to, label) along the x axis
    description: str = ""
    strip: Strip | None = None

    def draw(self, width: int, height: int) -> str:
        """The chart as an `svg` element of that size in CSS pixels."""
        left, right, top, bottom = 46, 12, 26, 58 if self.groups else 40
        floor = height - bottom - (ROW if self.strip else 0)
        x0, x1 = self._x_range()
        low, high = self._y_range()
        span = (width - left - right) / max(x1 - x0, 1e-9)

        def px(x: float) -> float:
            return left + (x - x0) * span

        def py(y: float) -> float:
            place = (math.log10(_drawable(y, low, high)) - low) / (high - low)
            return floor - place * (floor - top)

        parts = [
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
            f"<title>{escape(self.description or self.y_label)}</title>",
        ]
        parts += self._grid(width, height, left, right, bottom, low, high, py)
        parts += self._group_labels(width, height, right, bottom, top, px)
        for band in self.bands:
            parts.append(_area(band, px, py, floor))
        for series in self.series:
            parts += _lines(series, px, py)
        if self.strip is not None:
            parts += _strip(self.strip, px, floor, left, width - right)
        below = floor + ROW / 2
        parts += _marks(
            [
                (m, px(m.x), below if self.strip and not math.isfinite(m.y) else py(m.y))
                for m in self.marks
            ],
            (left + RADIUS, top + RADIUS - 8, width - right - RADIUS, floor - RADIUS),
        )
        middle = (left + width - right) / 2
        parts.append(
            f'<text class="axis" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        parts.append(
            f'<text class="axis" x="{left - 40}" y="{top - 14}">{escape(self.y_label)}</text>'
        )
        parts.append("</svg>")
        return "\n".join(parts)

    def _x_range(self) -> tuple[float, float]:
        drawn: list[Any] = [*self.series, *self.bands, *([self.strip] if self.strip else [])]
        xs = [x for s in drawn for x in s.x]
        return (min(xs), max(xs)) if xs else (0.0, 1.0)

    def _y_range(self) -> tuple[int, int]:
        drawn: list[Any] = [*self.series, *self.bands]
        ys = [y for s in drawn for y in s.y if math.isfinite(y) and y > 0]
        low = math.floor(math.log10(max(min(ys, default=1e-16), LOWEST)))
        high = math.ceil(math.log10(max(ys, default=1.0)) + 1e-9)
        return low, max(high, low + 3)

    def _grid(
        self,
        width: int,
        height: int,
        left: int,
        right: int,
        bottom: int,
        low: int,
        high: int,
        py: Callable[[float], float],
    ) -> list[str]:
        step = max(1, math.ceil((high - low) / 6))
        parts = []
        for exponent in range(low, high + 1, step):
            y = py(10.0**exponent)
            parts.append(
                f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{_power(exponent)}</text>"
            )
        if not self.groups:
            parts += self._ticks(width, height, left, right, bottom)
        return parts

    def _ticks(self, width: int, height: int, left: int, right: int, bottom: int) -> list[str]:
        x0, x1 = self._x_range()
        step = _round_step((x1 - x0) / max(2, (width - left - right) / 80))
        parts = []
        value = math.ceil(x0 / step) * step
        while value <= x1 + 1e-9:
            x = left + (value - x0) / max(x1 - x0, 1e-9) * (width - left - right)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">'
                f"{value:g}</text>"
            )
            value += step
        return parts

    def _group_labels(
        self,
        width: int,
        height: int,
        right: int,
        bottom: int,
        top: int,
        px: Callable[[float], float],
    ) -> list[str]:
        parts = []
        free = [0.0, 0.0]  # where each of two rows of labels may go on
        for start, end, label in self.groups:
            x = px(start - 0.5) if start > self._x_range()[0] else px(start)
            parts.append(
                f'<line class="group" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>'
            )
            wide = 6.6 * len(label) + 6
            middle = min(max(px((start + end) / 2), x + wide / 2), width - right - wide / 2)
            for row in (0, 1):
                if middle - wide / 2 >= free[row]:
                    free[row] = middle + wide / 2
                    parts.append(
                        f'<text class="tick" x="{middle:.1f}" y="{height - bottom + 15 + 14 * row}"'
                        f' text-anchor="middle">{escape(label)}</text>'
                    )
                    break
        return parts


def thinned(count: int, most: int = 1500) -> list[int]:
    """Evenly spread indices: a page with a point for each of a million steps would not open."""
    few = min(count, most)
    return sorted({round(i * (count - 1) / (few - 1 or 1)) for i in range(few)})


def _drawable(y: float, low: int, high: int) -> float:
    if math.isnan(y) or y == math.inf:
        return 10.0**high
    return min(max(y, 10.0**low), 10.0**high)


def _power(exponent: int) -> str:
    power = str(exponent).replace("-", "\u2212")
    return f'10<tspan dy="-4" font-size="75%">{power}</tspan>'


def _round_step(rough: float) -> float:
    base = 10 ** math.floor(math.log10(max(rough, 1e-9)))
    return max(1.0, next(m * base for m in (1, 2, 5, 10) if m * base >= rough))


def _area(
    band: Band, px: Callable[[float], float], py: Callable[[float], float], floor: float
) -> str:
    if not len(band.x):
        return ""
    upper = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(band.x, band.y, strict=True))
    ends = f"{px(band.x[-1]):.1f},{floor:.1f} {px(band.x[0]):.1f},{floor:.1f}"
    return f'<polygon class="{band.style}" points="{upper} {ends}"/>'


def _lines(series: Series, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    places = [(px(x), py(y)) for x, y in zip(series.x, series.y, strict=True)]
    parts = []
    if series.line and places:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{series.style}" points="{points}"/>')
    if series.points:
        for i, (x, y) in enumerate(places):
            title = escape(series.titles[i]) if i < len(series.titles) else ""
            parts.append(_point(series, x, y, title))
    return parts


def _point(series: Series, x: float, y: float, title: str) -> str:
    inside = f"<title>{title}</title>" if title else ""
    kind = f'class="{series.style} point"'
    if series.alike == "diamond":
        points = f"{x:.1f},{y - 4.2:.1f} {x + 4.2:.1f},{y:.1f} {x:.1f},{y + 4.2:.1f} "
        points += f"{x - 4.2:.1f},{y:.1f}"
        return f'<polygon {kind} points="{points}">{inside}</polygon>'
    if series.alike == "square":
        return f'<rect {kind} x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6">{inside}</rect>'
    if series.alike == "ring":
        kind = f'class="{series.style} ring"'
    return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3">{inside}</circle>'


def _strip(
    strip: Strip, px: Callable[[float], float], floor: float, left: float, right: float
) -> list[str]:
    """The row below the axis: a cross for each position."""
    y = floor + ROW / 2
    parts = [
        f'<rect class="strip" x="{left:.1f}" y="{floor + 4:.1f}" width="{right - left:.1f}" '
        f'height="{ROW - 8}"/>'
    ]
    for i, value in enumerate(strip.x):
        x = px(value)
        title = escape(strip.titles[i]) if i < len(strip.titles) else ""
        parts.append(
            f'<path class="cross {strip.style}" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6">'
            f"<title>{title or escape(strip.label)}</title></path>"
        )
    return parts


def _marks(
    marks: Sequence[tuple[Mark, float, float]], box: tuple[float, float, float, float]
) -> list[str]:
    """Numbered marks, each near its place, and none over another as far as there is space. `box` is
    where their centres may be: left, top, right, bottom."""
    taken: list[tuple[float, float]] = []
    parts = []
    for mark, x, y in marks:
        at = _free(x, y, taken, box)
        taken.append(at)
        parts.append(_mark(mark, x, y, at))
    return parts


def _free(
    x: float,
    y: float,
    taken: Sequence[tuple[float, float]],
    box: tuple[float, float, float, float],
) -> tuple[float, float]:
    """The nearest free centre for a mark at a point: above it, below it, then further away."""
    apart = 2 * RADIUS + 1
    steps = [(i, j) for i in range(-20, 21) for j in range(-20, 21) if j]
    steps.sort(key=lambda s: (abs(s[0]) + abs(s[1]), s[1] > 0, abs(s[0])))
    left, top, right, bottom = box
    for i, j in steps:
        place = x + i * apart, y + j * apart - (j > 0) * 2 + (j < 0) * 2
        place = min(max(place[0], left), right), place[1]
        if not top <= place[1] <= bottom:
            continue
        if all(math.dist(place, other) >= apart - 0.5 for other in taken):
            return place
    return min(max(x, left), right), top


def _mark(mark: Mark, x: float, y: float, at: tuple[float, float]) -> str:
    """A number in a circle at `at`, with a line to its point."""
    far = math.dist((x, y), at) or 1.0
    share = (RADIUS - 1) / far
    end = at[0] + (x - at[0]) * share, at[1] + (y - at[1]) * share
    return (
        f'<g class="mark"><title>{escape(mark.title or mark.text)}</title>'
        f'<line x1="{x:.1f}" x2="{end[0]:.1f}" y1="{y:.1f}" y2="{end[1]:.1f}"/>'
        f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{RADIUS}"/>'
        f'<text x="{at[0]:.1f}" y="{at[1] + 4:.1f}" text-anchor="middle">{escape(mark.text)}'
        "</text></g>"
    )
