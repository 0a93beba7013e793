"""Draws small line charts as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

WIDTH, HEIGHT = 620, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34


@dataclass(frozen=True, slots=True)
class Line:
    """One series. band: lower and upper bounds of each point."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, marked: tuple[float, float] | None = None) -> str:
    """Returns an SVG chart of all lines with a legend. marked: a range of x to shade."""
    lines = [_finite(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y] + [y for line in lines for bounds in line.band or () for y in bounds]
    if not xs:
        return ""
    scale = _Scale(min(xs), max(xs), min(ys), max(ys))
    parts = [_axes(scale, x_label, y_label)]
    if marked is not None:
        left, right = (scale.x(min(max(value, scale.low_x), scale.high_x)) for value in marked)
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}" '
            'fill="currentColor" opacity="0.08"/>'
        )
    parts += [_line(scale, line) for line in lines]
    legend = " ".join(f'<span style="color:{line.colour}">&#9632;</span> {escape(line.name)}' for line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%;height:auto" role="img" '
        f'aria-label="{escape(y_label)} by {escape(x_label)}">{"".join(parts)}</svg><div class="muted">{legend}</div>'
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / ((self.high_x - self.low_x) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low_y) / ((self.high_y - self.low_y) or 1.0) * (HEIGHT - TOP - BOTTOM)


def _finite(line: Line) -> Line:
    chosen = [index for index, y in enumerate(line.y) if isfinite(y)]
    return Line(
        line.name,
        line.colour,
        [line.x[index] for index in chosen],
        [line.y[index] for index in chosen],
        None if line.band is None else [line.band[index] for index in chosen],
        line.dashed,
    )


def _axes(scale: _Scale, x_label: str, y_label: str) -> str:
    style = 'font-size="11" fill="currentColor" opacity="0.75"'
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity="0.4"/>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle" {style}>{escape(x_label)}</text>',
        f'<text x="12" y="{(TOP + bottom) / 2:.0f}" text-anchor="middle" {style} '
        f'transform="rotate(-90 12 {(TOP + bottom) / 2:.0f})">{escape(y_label)}</text>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = scale.low_x + share * (scale.high_x - scale.low_x)
        y = scale.low_y + share * (scale.high_y - scale.low_y)
        parts.append(f'<text x="{scale.x(x):.1f}" y="{bottom + 14}" text-anchor="middle" {style}>{x:.3g}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{scale.y(y) + 4:.1f}" text-anchor="end" {style}>{y:.2g}</text>')
    return "".join(parts)


def _line(scale: _Scale, line: Line) -> str:
    points = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
    dashes = ' stroke-dasharray="4 4"' if line.dashed else ""
    drawn = f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dashes}/>'
    if line.band:
        upper = [f"{scale.x(x):.1f},{scale.y(high):.1f}" for x, (_, high) in zip(line.x, line.band, strict=True)]
        lower = [f"{scale.x(x):.1f},{scale.y(low):.1f}" for x, (low, _) in zip(line.x, line.band, strict=True)]
        drawn = f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{line.colour}" opacity="0.15"/>' + drawn
    return drawn
