"""Figures of a grid as PNG and SVG: the paper's 1, 3, 4 and 10 from our runs."""

import difflib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from etpo_jax import durable, json_files, run_directory
from etpo_jax.reproduction import measures, statistics
from etpo_jax.reproduction.measures import Results, Run

# Okabe and Ito's colours, told apart with every common kind of colour vision; then dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A0508A", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_X_LABEL = "environment steps k"
_NUM_POINTS = 25
_NUM_RESAMPLES = 400
# Text in SVG stays text; ids and dates that differ from run to run are left out.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "etpo_jax"}


def best_reward(results: Results, title: str) -> Figure:
    """Figures 3 and 10: the best reward until environment step k, over all common data sets."""
    figure, axes = _axes(title, "best reward until then")
    _curves(axes, results, lambda run, k: run.best_until(k))
    return figure


def average_reward(results: Results, title: str) -> Figure:
    """Figure 4: the average reward of what was executed around step k, over common data sets."""
    figure, axes = _axes(title, "mean reward")
    total = min(len(run.reward_t) for run in _runs(results))
    window = max(1, total // 10)
    _curves(axes, results, lambda run, k: float(run.reward_t[max(0, k - window) : k].mean()))
    axes.set_ylabel(f"mean reward of the last {window} actions (a failure is -1)")
    return figure


def evolution(run: Run) -> Figure:
    """Figure 1, the curve: when a run found better programs. `evolution_text` has the programs."""
    figure, axes = _axes(f"Best program of {run.cell}", "reward")
    found = improvements(run)
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
    previous: list[str] = []
    for row in improvements(run):
        program = row["action"].strip("\n").splitlines()
        lines += [f"Environment step {row['env_step']}, reward {row['reward']:.4f}", "", "```diff"]
        lines += [line for line in difflib.ndiff(previous, program) if not line.startswith("?")]
        lines += ["```", ""]
        previous = program
    return "\n".join(lines)


def improvements(run: Run) -> list[json_files.Row]:
    """Rows of `episodes.jsonl` of programs that ran and beat all before them."""
    found: list[json_files.Row] = []
    for row in json_files.read_rows(run.path / run_directory.EPISODES):
        if not row["error"] and (not found or row["reward"] > found[-1]["reward"]):
            found.append(row)
    return found


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.png and NAME.svg."""
    with matplotlib.rc_context(_STYLE):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            durable.replace(folder / f"{name}.{kind}", picture.getvalue())


def _axes(title: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(_X_LABEL)
    axes.set_ylabel(label)
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(axes: Axes, results: Results, value: Callable[[Run, int], float]) -> None:
    """A line with its 95 % band for each algorithm: interquartile means over runs."""
    datasets = measures.common_datasets(results)
    total = min(len(run.reward_t) for run in _runs(results))
    points = np.unique(np.linspace(max(1, total // _NUM_POINTS), total, _NUM_POINTS).astype(int))
    for index, (name, by_dataset) in enumerate(results.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        middle, low, high = _band(by_dataset, datasets, points, value)
        axes.fill_between(points, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(points, middle, dash, color=colour, lw=2, label=name)
    axes.legend(frameon=False, fontsize=10)
    count = f"{len(datasets)} data set" + "s" * (len(datasets) != 1)
    axes.set_xlabel(f"{_X_LABEL}\n({count}; interquartile mean, 95 % bootstrap band)")


def _band(
    by_dataset: Mapping[str, Sequence[Run]],
    datasets: Sequence[str],
    points: Int[np.ndarray, "k"],
    value: Callable[[Run, int], float],
) -> Float[np.ndarray, "3 k"]:
    columns = []
    for k in points:
        scores = [np.array([value(run, int(k)) for run in by_dataset[name]]) for name in datasets]
        found = statistics.bootstrap(statistics.aggregate, scores, num_resamples=_NUM_RESAMPLES)
        columns.append((found.value, found.low, found.high))
    return np.array(columns).T


def _runs(results: Results) -> list[Run]:
    return [run for rows in results.values() for runs in rows.values() for run in runs]
