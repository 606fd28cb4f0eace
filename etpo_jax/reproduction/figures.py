"""Figures of a grid as PNG and SVG: the paper's 1, 3, 4 and 10 from our runs."""

import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from etpo_jax.reproduction.curves import X_LABEL, Curves
from etpo_jax.reproduction.measures import Run
from etpo_jax.runs import files
from etpo_jax.runs.run_log import improvements

# Okabe and Ito's colours, told apart with every common kind of colour vision; then dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A0508A", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
# Text in SVG stays text; ids and dates that differ from run to run are left out.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "etpo_jax"}


def draw(curves: Curves, title: str) -> Figure:
    """Figures 3, 4 and 10: a line with its band for each algorithm."""
    figure, axes = _axes(title, curves.y_label)
    for index, (name, band) in enumerate(curves.bands.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        axes.fill_between(curves.env_step_k, band[1], band[2], color=colour, alpha=0.15, lw=0)
        axes.plot(curves.env_step_k, band[0], dash, color=colour, lw=2, label=name)
    axes.legend(frameon=False, fontsize=10)
    axes.set_xlabel(f"{X_LABEL}\n({curves.note})")
    return figure


def evolution(run: Run) -> Figure:
    """Figure 1, the curve: when a run found better programs. `evolution_text` has the programs."""
    figure, axes = _axes(f"Best program of {run.cell}", "reward")
    found = improvements(run.path)
    steps = np.arange(1, len(run.reward_t) + 1)
    ran = run.reward_t > -1
    axes.plot(steps[ran], run.reward_t[ran], ".", color="0.75", ms=4, label="programs that ran")
    best = np.maximum.accumulate(run.reward_t)
    axes.plot(steps[best > -1], best[best > -1], color=_COLOURS[1], lw=2, label="best so far")
    for row in found:
        axes.plot(row["env_step"], row["reward"], "o", color=_COLOURS[1], ms=6)
    axes.set_xlim(0, len(steps) * 1.02)
    axes.legend(frameon=False, loc="lower right")
    return figure


def evolution_text(run: Run) -> str:
    """Figure 1, the programs, as Markdown: each better one with the lines that changed."""
    lines = [f"### Evolution of the best program: {run.cell}", ""]
    for row, changes in changes_of(run):
        lines += [f"Environment step {row['env_step']}, reward {row['reward']:.4f}", ""]
        lines += ["```diff", *changes, "```", ""]
    return "\n".join(lines)


def changes_of(run: Run) -> Iterator[tuple[files.Row, list[str]]]:
    """Each better program's row of `episodes.jsonl`, and its lines as changes of the one before."""
    previous: list[str] = []
    for row in improvements(run.path):
        program = row["action"].strip("\n").splitlines()
        yield row, [line for line in difflib.ndiff(previous, program) if not line.startswith("?")]
        previous = program


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.png and NAME.svg."""
    with matplotlib.rc_context(_STYLE):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            files.replace(folder / f"{name}.{kind}", picture.getvalue())


def _axes(title: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(X_LABEL)
    axes.set_ylabel(label)
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
