"""Charts with matplotlib: pictures for files, and SVG that takes its colours from a page."""

import dataclasses
import html
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from etpo_jax.runs.run_log import running_mean, smoothing_window

# Okabe and Ito's colours, told apart with every common kind of colour vision, then grey and black.
_SERIES = ("#0072b2", "#009e73", "#d55e00", "#a0508a", "#e69f00", "#8a939c", "#1b1f24")
_DASHES = ("-", "--", ":")
_TEXT, _RULE = "#5b6570", "#dfe3e8"
# Colours of a picture to those of `html_page`, which has them for light and dark.
_PAGE_COLOURS = {colour: f"var(--c{index})" for index, colour in enumerate(_SERIES)}
_PAGE_COLOURS |= {_TEXT: "var(--soft)", _RULE: "var(--rule)"}
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _RULE,
    "axes.grid": True,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": False,
    "grid.color": _RULE,
    # Text in SVG stays text, and its identifiers are the same in every run.
    "svg.fonttype": "none",
    "svg.hashsalt": "etpo_jax",
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}
# More points than pixels only make a page heavy.
_MAX_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over the x of its chart, or a layer of stacked bars; NaN entries are gaps.

    Attributes:
      name: label in the legend.
      series: number of the colour; more series than colours are told apart by dashes.
      y: one value per x, or per bar.
      band: lower and upper end of an interval around each value, or None.
      is_raw: draws a thin and pale line.
      is_step: each value, with its band, holds until the next x.
    """

    name: str
    series: int
    y: Float[np.ndarray, "u"]
    band: Float[np.ndarray, "2 u"] | None = None
    is_raw: bool = False
    is_step: bool = False

    @property
    def colour(self) -> str:
        return _SERIES[self.series % len(_SERIES)]


def page_colour(line: Line) -> str:
    """The colour of a line in CSS of `html_page`."""
    return _PAGE_COLOURS[line.colour]


def smoothed(y: Float[np.ndarray, "u"], series: int) -> list[Line]:
    """A curve with its running mean in front; a curve too short to be smoothed stands alone."""
    window = smoothing_window(len(y))
    if window == 1:
        return [Line("batch", series, y)]
    mean = Line(f"mean over {window} batches", series, running_mean(y, window))
    return [Line("batch", series, y, is_raw=True), mean]


def figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches, and its panels from left to right and top to bottom."""
    with matplotlib.rc_context(_STYLE):
        made = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(made)
        return made, list(made.subplots(rows, columns, sharex=True, squeeze=False).flat)


def label(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Sets the title and the labels of both axes."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_SERIES[-1])
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def legend(axes: Axes) -> None:
    """Adds a legend of all labelled curves."""
    axes.legend(frameon=False, labelcolor=_TEXT)


def draw_lines(axes: Axes, x: Float[np.ndarray, "u"], lines: Sequence[Line]) -> None:
    """Draws curves in order, the last on top; a point without known neighbours becomes a dot."""
    keep = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
    for line in lines:
        y = line.y[keep]
        is_known = np.isfinite(y)
        y = np.where(is_known, y, np.nan)
        before, after = np.append(False, is_known[:-1]), np.append(is_known[1:], False)
        is_alone = is_known & ~before & ~after
        dash = _DASHES[line.series // len(_SERIES) % len(_DASHES)]
        if line.band is not None:
            low, high = line.band[:, keep]
            axes.fill_between(
                x[keep],
                low,
                high,
                color=line.colour,
                alpha=0.15,
                lw=0,
                step="post" if line.is_step else None,
            )
        axes.plot(
            x[keep],
            y,
            dash,
            color=line.colour,
            lw=1 if line.is_raw else 2,
            alpha=0.4 if line.is_raw else 1,
            drawstyle="steps-post" if line.is_step else "default",
            label=line.name,
        )
        axes.plot(x[keep][is_alone], y[is_alone], ".", color=line.colour)


def draw_bars(axes: Axes, edges: Float[np.ndarray, "e"], layers: Sequence[Line]) -> None:
    """Stacks bars over the intervals between `edges`; each layer has a value per interval."""
    base = np.zeros(len(edges) - 1)
    for layer in layers:
        axes.bar(edges[:-1], layer.y, 0.95 * np.diff(edges), base, align="edge", color=layer.colour)
        base = base + layer.y


def show_shares(axes: Axes, highest: float = 1.0) -> None:
    """Makes the y axis a percentage from 0 to `highest`, the largest share that is shown."""
    axes.set_ylim(-0.02 * highest, 1.02 * highest)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None if highest < 0.05 else 0))


def readouts(
    x: Float[np.ndarray, "u"], lines: Sequence[Line], spec: str = ".4g"
) -> list[tuple[float, str]]:
    """Values of all lines at each x in words, for `to_svg`; long curves are thinned."""
    keep = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
    return [
        (
            float(x[i]),
            f"{x[i]:g}: "
            + ", ".join(f"{a.name} {a.y[i]:{spec}}" for a in lines if np.isfinite(a.y[i])),
        )
        for i in keep
    ]


def to_bytes(made: Figure, kind: str) -> bytes:
    """The figure as a file of kind "png" or "svg", the same bytes for the same figure."""
    picture = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None} if kind == "svg" else {}
        made.savefig(picture, format=kind, metadata=metadata, transparent=kind == "svg")
    return picture.getvalue()


def to_svg(made: Figure, shown: Sequence[tuple[float, str]] = ()) -> str:
    """The figure as an element of a page that `html_page` makes.

    Args:
      made: a figure whose first panel is the chart.
      shown: x and text, which the page shows for the x nearest to the pointer.
    """
    text = to_bytes(made, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Namespaces mean nothing in HTML; identifiers such as axes_1 would stand in it several times.
    text = re.sub(r' (xmlns(:\w+)?="[^"]*"|id="\w+_\d+")', "", text)
    for colour, variable in _PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    axes = made.axes[0]
    # A picture has 72 points per inch, whatever the pixels of its figure.
    points_per_pixel = 72 / made.dpi
    places = [
        [round(float(axes.transData.transform((x, 0))[0]) * points_per_pixel, 1), words]
        for x, words in shown
    ]
    height = 72 * made.get_figheight()
    top, bottom = ((1 - y) * height for y in (axes.get_position().y1, axes.get_position().y0))
    cursor = f'<path class="cursor" d="M0 {top:.1f}V{bottom:.1f}"/></svg>'
    data = html.escape(json.dumps(places, separators=(",", ":")))
    head = f'<svg role="img" data-readouts="{data}"' if places else '<svg role="img"'
    return text.strip().removesuffix("</svg>").replace("<svg", head, 1) + cursor
