"""Pictures and pages of a run, drawn from its files: `curve.png` and `report.html`."""

import html
import io
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from env.base import UsageError
from etpo_jax.runs import directory, files, html_page, token_page
from etpo_jax.runs.run_log import Episodes, RunLog, improvements, running_mean, smoothing_window
from etpo_jax.runs.svg_chart import Line, line_chart, stacked_bars

_X_LABEL = "environment steps"
# Okabe and Ito's colours, told apart with every common kind of colour vision.
_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE = "#0072B2", "#D55E00", "#009E73", "#A0508A", "#E69F00"
# Kinds of errors with a colour of their own; the others are counted together.
_MAX_KINDS = 5
_MAX_BARS = 24
# Best programs that the page shows in full, the newest.
_MAX_IMPROVEMENTS = 8


def write_curve(run_path: Path) -> Path:
    """Draws the learning curve of a run as `curve.png`: reward, runnable share, KL and entropy.

    Returns: the path of the picture.
    Raises:
      UsageError: the folder is no run directory, or holds no update yet.
    """
    log = _read(run_path)
    x = log.column("env_step")
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{log.title} - {log.env_steps} environment steps", fontsize=14)
    panels = figure.subplots(2, 2, sharex=True)
    _panel(panels[0, 0], "Reward", "mean ROC AUC, failure -1")
    _raw_and_smooth(panels[0, 0], x, log.column("reward_mean"), _BLUE)
    best = log.column("reward_best")
    # A single point has no line.
    marker = "." if len(x) == 1 else ""
    panels[0, 0].plot(
        x, best, color=_ORANGE, lw=2, marker=marker, drawstyle="steps-post", label="best so far"
    )
    _panel(panels[0, 1], "Programs that run", "% of a batch")
    _raw_and_smooth(panels[0, 1], x, 100 * log.column("runnable_rate"), _GREEN)
    panels[0, 1].set_ylim(-4, 104)
    _panel(panels[1, 0], "KL to the reference", "nats per action")
    _raw_and_smooth(panels[1, 0], x, log.column("kl_to_reference"), _VERMILION)
    _panel(panels[1, 1], "Entropy of the policy", "nats per action")
    _raw_and_smooth(panels[1, 1], x, log.column("entropy"), _PURPLE)
    for axes in panels.flat:
        axes.set_xlim(0, x[-1] * 1.02)
        axes.legend(loc="best", frameon=False, fontsize=10)
    for axes in panels[1]:
        axes.set_xlabel(_X_LABEL, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path = run_path / directory.CURVE
    files.replace(path, picture.getvalue())
    return path


def write_report(run_path: Path) -> Path:
    """Writes `report.html`: one file that needs no network, for wide and narrow screens.

    Returns: the path of the page.
    Raises:
      UsageError: the folder is no run directory, or holds no update yet.
    """
    path = run_path / directory.REPORT
    files.replace(path, _page(_read(run_path)))
    return path


def _read(run_path: Path) -> RunLog:
    log = RunLog.read(run_path)
    if not log.metrics:
        raise UsageError(f"{run_path} holds no update yet: there is nothing to draw")
    return log


# curve.png ----------------------------------------------------------------------------------------


def _panel(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel(unit, fontsize=11)
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _raw_and_smooth(
    axes: Axes, x: Float[np.ndarray, "u"], y: Float[np.ndarray, "u"], color: str
) -> None:
    window = smoothing_window(len(x))
    if window == 1:
        axes.plot(x, y, color=color, lw=2, marker=".", label="batch")
        return
    axes.plot(x, y, color=color, lw=1, alpha=0.35, label="batch")
    label = f"mean over {window} batches"
    axes.plot(x, running_mean(y, window), color=color, lw=2.2, label=label)


# report.html --------------------------------------------------------------------------------------


def _page(log: RunLog) -> str:
    x = log.column("env_step")
    sections = [
        _tiles(log),
        '<div class="charts">',
        _reward_chart(log, x),
        _line_figure(log, x, "runnable_rate", "Programs that run", "share of a batch", 1, ".0%"),
        _line_figure(log, x, "kl_to_reference", "KL to the reference", "nats per action", 2),
        _line_figure(log, x, "entropy", "Entropy of the policy", "nats per action", 3),
        _line_figure(log, x, "distinct_programs", "Different programs", "of the last 64", 5),
        _error_chart(log.episodes),
        "</div>",
        _best_programs(log),
        token_page.inspector(_tokens(log)),
        _reproduction(log),
        html_page.details("Configuration", _table(log.config)),
        html_page.details("Versions", _table(log.setup)),
    ]
    state = "finished" if log.finished is not None else "under way or stopped"
    return html_page.page(
        log.title,
        f"{log.env_steps} environment steps, {state}",
        sections,
        style=token_page.STYLE,
        script=token_page.SCRIPT,
    )


def _tokens(log: RunLog) -> list[files.Row]:
    path = log.path / directory.TOKENS
    return list(files.read_rows(path)) if path.exists() else []


def _tiles(log: RunLog) -> str:
    tiles = []
    if log.best is not None:
        place = f"at environment step {log.best.env_step}"
        tiles.append(("Best reward", f"{log.best.reward:.4f}", place))
    fifths = log.episodes.fifths()
    if fifths is not None:
        note = f"in the last fifth of the steps; {fifths[0]:.3f} in the first"
        tiles.append(("Mean reward", f"{fifths[1]:.3f}", note))
    for title, name, spec in (
        ("Programs that run", "runnable_rate", ".0%"),
        ("KL to the reference", "kl_to_reference", ".3g"),
        ("Entropy", "entropy", ".3g"),
    ):
        values = log.column(name)
        values = values[np.isfinite(values)][-max(1, len(values) // 5) :]
        if len(values):
            unit = "" if spec.endswith("%") else "nats per action, "
            tiles.append((title, format(values.mean(), spec), f"{unit}last fifth of the updates"))
    cells = "".join(
        f'<div class="tile"><div>{title}</div><b>{value}</b><small>{note}</small></div>'
        for title, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _reward_chart(log: RunLog, x: Float[np.ndarray, "u"]) -> str:
    lines = [
        *_raw_and_smooth_lines(log.column("reward_mean"), 0),
        Line("best so far", "s4", log.column("reward_best")),
    ]
    chart = line_chart(x, lines, x_label=_X_LABEL)
    return html_page.chart("Reward", "mean ROC AUC, failure -1", chart, lines)


def _line_figure(
    log: RunLog,
    x: Float[np.ndarray, "u"],
    name: str,
    title: str,
    unit: str,
    series: int,
    y_format: str = ".3g",
) -> str:
    y = log.column(name)
    if not np.isfinite(y).any():
        return ""
    lines = _raw_and_smooth_lines(y, series)
    y_range = (0.0, 1.0) if y_format.endswith("%") else (0.0,)
    chart = line_chart(x, lines, x_label=_X_LABEL, y_format=y_format, y_range=y_range)
    return html_page.chart(title, unit, chart, lines)


def _raw_and_smooth_lines(y: Float[np.ndarray, "u"], series: int) -> list[Line]:
    window = smoothing_window(len(y))
    if window == 1:
        return [Line("batch", f"s{series}", y)]
    return [
        Line("batch", f"s{series} raw", y),
        Line(f"mean over {window} batches", f"s{series}", running_mean(y, window)),
    ]


def _error_chart(episodes: Episodes) -> str:
    counts = Counter(kind for kind in episodes.kind_t if kind)
    if not counts:
        return ""
    named = [kind for kind, _ in counts.most_common(_MAX_KINDS)]
    kinds = np.array([kind if kind in named else "other" for kind in episodes.kind_t], object)
    is_error = np.array([bool(kind) for kind in episodes.kind_t])
    num_bars = max(1, min(_MAX_BARS, len(kinds) // 8))
    edges = np.linspace(0, episodes.env_step_t[-1], num_bars + 1)
    totals = np.maximum(np.histogram(episodes.env_step_t, edges)[0], 1)
    layers = []
    for series, kind in enumerate([*named, "other"]):
        chosen = episodes.env_step_t[is_error & (kinds == kind)]
        if len(chosen):
            shares = np.histogram(chosen, edges)[0] / totals
            layers.append(Line(kind, f"s{series}", shares))
    chart = stacked_bars(edges, layers, x_label=_X_LABEL)
    return html_page.chart("Errors by kind", "share of the programs", chart, layers)


def _best_programs(log: RunLog) -> str:
    if log.best is None:
        return "<h2>Best program</h2><p>No program has run yet.</p>"
    scores = ", ".join(f"{score:.4f}" for score in log.best.split_scores)
    parts = [
        "<h2>Best program</h2>",
        f"<p>Reward {log.best.reward:.4f} at environment step {log.best.env_step}"
        + (f"; by split {scores}" if scores else "")
        + f".</p><pre>{html.escape(log.best.program.rstrip())}</pre>",
    ]
    shown = improvements(log.path)[-_MAX_IMPROVEMENTS:]
    if len(shown) > 1:
        parts.append("<h2>How it came about</h2>")
    for row in shown[:-1][::-1]:
        title = f"{float(row['reward']):.4f} at environment step {row['env_step']}"
        parts.append(
            html_page.details(title, f"<pre>{html.escape(row['action'].strip(chr(10)))}</pre>")
        )
    return "\n".join(parts)


def _reproduction(log: RunLog) -> str:
    command = str(log.setup["command"])
    flags_file = shlex.quote(str(log.path / directory.FLAGS))
    anew = f"python -m etpo_jax.train --flagfile={flags_file} --run_dir=NEW_FOLDER"
    commit = log.setup.get("git_commit") or "unknown"
    return (
        "<h2>Do it again</h2><p>This run was started by</p>"
        f"<pre>{html.escape(command)}</pre><p>All its settings, the defaults too:</p>"
        f"<pre>{html.escape(anew)}</pre>"
        f"<p>Commit of the code: <code>{html.escape(commit)}</code></p>"
    )


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>"
        f"{html.escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'
