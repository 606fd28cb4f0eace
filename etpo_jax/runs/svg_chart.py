"""Line charts and stacked bars as SVG text, for pages that need nothing from the network.

Colours come from the page's style sheet: series `i` uses the class `s{i}`. A page's script can read
what stands under the pointer from `data-readouts`, a list of [x in the picture, text].
"""

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 40
# More points than pixels only make the page heavy.
_MAX_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over the chart's x; NaN entries are gaps.

    Attributes:
      name: for the legend and the readout; "" keeps the line out of both.
      css_class: how the style sheet knows it.
      y: one value per x.
      band: lower and upper end of an interval around each value, or None.
    """

    name: str
    css_class: str
    y: Float[np.ndarray, "u"]
    band: Float[np.ndarray, "2 u"] | None = None


def line_chart(
    x: Float[np.ndarray, "u"],
    lines: Sequence[Line],
    *,
    x_label: str,
    y_format: str = ".3g",
    y_range: Sequence[float] = (),
) -> str:
    """Curves over one x axis.

    Args:
      x: increasing, at least one.
      lines: drawn in order, the last on top.
      y_format: of the axis labels and the readout.
      y_range: values that the y axis includes beside those of the lines.
    """
    keep = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
    x = x[keep]
    lines = [
        dataclasses.replace(
            line, y=line.y[keep], band=None if line.band is None else line.band[:, keep]
        )
        for line in lines
    ]
    shown = [line.y for line in lines] + [np.ravel(x.band) for x in lines if x.band is not None]
    finite = np.concatenate([y[np.isfinite(y)] for y in shown] + [np.array(y_range)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    y_ticks = ticks(low, high)
    to_x = _scale(0.0, float(x[-1]), _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(min(low, y_ticks[0]), max(high, y_ticks[-1]), _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(to_x, to_y, ticks(0.0, float(x[-1])), y_ticks, x_label, y_format)]
    parts += [_band(line, line.band, x, to_x, to_y) for line in lines if line.band is not None]
    parts += [_curve(line, x, to_x, to_y) for line in lines]
    readouts = []
    for i, value in enumerate(x):
        figures = ", ".join(
            f"{line.name} {_text(line.y[i], y_format)}" for line in lines if line.name
        )
        readouts.append([round(to_x(float(value)), 1), f"{value:g}: {figures}"])
    return _figure(parts, readouts)


def stacked_bars(
    edges: Float[np.ndarray, "e"],
    layers: Sequence[Line],
    *,
    x_label: str,
) -> str:
    """Bars over the intervals between `edges`; the layers' values are shares that stack to <= 1."""
    to_x = _scale(0.0, float(edges[-1]), _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(0.0, 1.0, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(to_x, to_y, ticks(0.0, float(edges[-1])), ticks(0.0, 1.0), x_label, ".0%")]
    readouts = []
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        left, right = to_x(float(start)), to_x(float(end))
        base = 0.0
        for layer in layers:
            share = float(layer.y[i])
            if share > 0:
                top = to_y(base + share)
                parts.append(
                    f'<rect class="{layer.css_class}" x="{left + 0.5:.1f}" y="{top:.1f}" '
                    f'width="{max(right - left - 1, 0.5):.1f}" height="{to_y(base) - top:.1f}"/>'
                )
                base += share
        figures = ", ".join(f"{layer.name} {layer.y[i]:.0%}" for layer in layers if layer.y[i] > 0)
        readouts.append([round((left + right) / 2, 1), f"to {end:g}: {figures or 'none'}"])
    return _figure(parts, readouts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from within or around [low, high], at most about `count` + 1 of them."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _axes(
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_format: str,
) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in y_ticks:
        y = to_y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        label = html.escape(_text(value, y_format))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in x_ticks:
        x = to_x(value)
        if x <= right + 0.5:
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
            )
    middle = (_LEFT + right) / 2
    label = html.escape(x_label)
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _curve(
    line: Line,
    x: Float[np.ndarray, "u"],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> str:
    """A line through neighbours that are known, a dot for a point that has none."""
    places = [f"{to_x(float(a)):.1f} {to_y(float(b)):.1f}" for a, b in zip(x, line.y, strict=True)]
    is_known = np.isfinite(line.y)
    dots, commands = [], []
    for i in np.flatnonzero(is_known):
        follows = i > 0 and is_known[i - 1]
        if follows or is_known[i + 1 : i + 2].any():
            commands.append(f"{'L' if follows else 'M'}{places[i]}")
        else:
            across, down = places[i].split()
            dots.append(f'<circle class="dot {line.css_class}" cx="{across}" cy="{down}" r="3"/>')
    return f'<path class="line {line.css_class}" d="{"".join(commands)}"/>{"".join(dots)}'


def _band(
    line: Line,
    band: Float[np.ndarray, "2 u"],
    x: Float[np.ndarray, "u"],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> str:
    """The area between both ends, along the lower and back along the upper."""
    around = [*zip(x, band[0], strict=True), *zip(x[::-1], band[1, ::-1], strict=True)]
    places = "L".join(f"{to_x(float(a)):.1f} {to_y(float(b)):.1f}" for a, b in around)
    return f'<path class="band {line.css_class}" d="M{places}Z"/>'


def _text(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else "-"


def _figure(parts: Sequence[str], readouts: Sequence[Sequence[object]]) -> str:
    data = html.escape(json.dumps(readouts, separators=(",", ":")))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" data-readouts="{data}">'
        f'{"".join(parts)}<path class="cursor" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}"/></svg>'
    )
