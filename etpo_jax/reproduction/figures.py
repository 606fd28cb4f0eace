"""Figures 1, 3, 4 and 10 of the paper, drawn from the runs of a grid."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from etpo_jax.reproduction.curves import X_LABEL, Curves
from etpo_jax.reproduction.measures import Run
from etpo_jax.runs import charts, files
from etpo_jax.runs.charts import Line
from etpo_jax.runs.run_log import improvements

_SIZE = (7.5, 4.8)


def draw(curves: Curves, title: str) -> Figure:
    """Draws a line with its band for each algorithm (Figures 3, 4 and 10)."""
    figure, (axes,) = charts.figure(*_SIZE)
    lines = lines_of(curves)
    charts.label(axes, title=title, x=f"{X_LABEL}\n({curves.note})", y=curves.y_label)
    charts.draw_lines(axes, curves.env_step_k, lines)
    charts.legend(axes)
    return figure


def lines_of(curves: Curves) -> list[Line]:
    """The curves of all algorithms, each in a colour of its own."""
    return [
        Line(name, series, band[0], band[1:], is_step=curves.is_step)
        for series, (name, band) in enumerate(curves.bands.items())
    ]


def evolution(run: Run) -> Figure:
    """Draws when a run found better programs (Figure 1); `evolution_text` has the programs."""
    figure, (axes,) = charts.figure(*_SIZE)
    charts.label(axes, title=f"Best program of {run.cell}", x=X_LABEL, y="reward")
    steps = np.arange(1, len(run.reward_t) + 1)
    ran = run.reward_t > -1
    axes.plot(steps[ran], run.reward_t[ran], ".", color="0.75", ms=4, label="programs that ran")
    best = np.maximum.accumulate(run.reward_t)
    line = Line("best so far", 2, np.where(best > -1, best, np.nan), is_step=True)
    charts.draw_lines(axes, steps, [line])
    for row in improvements(run.path):
        axes.plot(row["env_step"], row["reward"], "o", color=line.colour, ms=6)
    axes.set_xlim(0, len(steps) * 1.02)
    charts.legend(axes)
    return figure


def evolution_text(run: Run) -> str:
    """Formats the better programs of Figure 1 as Markdown, each with the lines that changed."""
    lines = [f"### Evolution of the best program: {run.cell}", ""]
    for row, changes in changes_of(run):
        lines += [f"Environment step {row['env_step']}, reward {row['reward']:.4f}", ""]
        lines += ["```diff", *changes, "```", ""]
    return "\n".join(lines)


def changes_of(run: Run) -> Iterator[tuple[files.Row, list[str]]]:
    """Yields the row of each better program and its changes against the program before it."""
    previous: list[str] = []
    for row in improvements(run.path):
        program = row["action"].strip("\n").splitlines()
        yield row, [line for line in difflib.ndiff(previous, program) if not line.startswith("?")]
        previous = program


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.png and NAME.svg."""
    for kind in ("png", "svg"):
        files.replace(folder / f"{name}.{kind}", charts.to_bytes(figure, kind))
