"""Pictures and pages of a run, drawn from its files: `curve.png` and `report.html`."""

import html
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from env.base import UsageError
from etpo_jax.runs import charts, directory, files, html_page, report_sections, token_page
from etpo_jax.runs.charts import Line
from etpo_jax.runs.run_log import Episodes, RunLog

_X_LABEL = "environment steps"
# Kinds of errors with a colour of their own; the others are counted together.
_MAX_KINDS = 5
_MAX_BARS = 24
# Inches of the charts of the page, which scales them.
_LARGE, _SMALL = (6.1, 3.4), (4.3, 2.4)


class _Metric(NamedTuple):
    title: str
    unit: str
    series: int = 5
    is_share: bool = False


_LEADING = {
    "runnable_rate": _Metric("Programs that run", "share of a batch", 1, True),
    "kl_to_reference": _Metric("KL to the reference", "nats per action", 2),
    "entropy": _Metric("Entropy of the policy", "nats per action", 3),
    "distinct_programs": _Metric("Different programs", "of the last 64", 5),
}
_OTHERS = {
    "critic_loss": _Metric("Critic loss", "mean over tokens"),
    "policy_loss": _Metric("Policy loss", "mean over tokens"),
    "target_mean": _Metric("Mean target of the critic", "reward"),
    "critic_grad_norm": _Metric("Gradient norm of the critic", "before clipping"),
    "policy_grad_norm": _Metric("Gradient norm of the policy", "before clipping"),
    "clipped_share": _Metric("Clipped by the trust region", "share", is_share=True),
    "reward_cache_hit_rate": _Metric("Rewards from the cache", "share of a batch", is_share=True),
    "tokens_per_s": _Metric("Speed of generation", "tokens per second"),
    "generate_s": _Metric("Time to generate", "seconds per update"),
    "execute_s": _Metric("Time to execute", "seconds per update"),
    "update_s": _Metric("Time to learn", "seconds per update"),
    "endpoint_prompt_tokens": _Metric("Prompt tokens of the endpoint", "since the start"),
    "endpoint_completion_tokens": _Metric("Completion tokens of the endpoint", "since the start"),
    "endpoint_cost_usd": _Metric("Cost of the endpoint", "US dollars since the start"),
}
# Columns that count, and rewards, which have a chart of their own.
_NOT_METRICS = {"env_step", "update", "gradient_steps", "reward_mean", "reward_best"}


def write_curve(run_path: Path) -> Path:
    """Draws the learning curve of a run as `curve.png`: reward, runnable share, KL and entropy.

    Returns: the path of the picture.
    Raises:
      UsageError: the folder is no run directory, or holds no update yet.
    """
    log = _read(run_path)
    x = log.column("env_step")
    figure, panels = charts.figure(11, 7, rows=2, columns=2)
    figure.suptitle(f"{log.title} - {log.env_steps} environment steps", fontsize=14)
    charts.label(panels[0], title="Reward", y="mean of a batch, failure -1")
    charts.draw_lines(panels[0], x, _reward_lines(log))
    names = ("runnable_rate", "kl_to_reference", "entropy")
    for axes, name in zip(panels[1:], names, strict=True):
        metric = _LEADING[name]
        charts.label(axes, title=metric.title, y=metric.unit)
        charts.draw_lines(axes, x, charts.smoothed(log.column(name), metric.series))
        if metric.is_share:
            charts.show_shares(axes)
    for axes in panels:
        axes.set_xlim(0, x[-1] * 1.02)
        charts.legend(axes)
    for axes in panels[2:]:
        axes.set_xlabel(_X_LABEL)
    path = run_path / directory.CURVE
    files.replace(path, charts.to_bytes(figure, "png"))
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


def _reward_lines(log: RunLog) -> list[Line]:
    best = Line("best so far", 4, log.column("reward_best"), is_step=True)
    return [*charts.smoothed(log.column("reward_mean"), 0), best]


def _page(log: RunLog) -> str:
    x = log.column("env_step")
    others = [name for name in log.numeric_columns() if name not in {*_LEADING, *_NOT_METRICS}]
    others.sort(key=lambda name: [*_OTHERS, name].index(name))
    sections = [
        _tiles(log),
        report_sections.scores(log),
        report_sections.leaderboard(log),
        report_sections.next_steps(log),
        report_sections.table(log),
        '<h2>Learning curves</h2><div class="charts">',
        _line_chart(x, _reward_lines(log), _Metric("Reward", "mean of a batch, failure -1")),
        *(_metric_chart(log, x, name, metric) for name, metric in _LEADING.items()),
        _error_chart(log.episodes),
        "</div>",
        report_sections.errors(log),
        token_page.inspector(list(files.read_rows(log.path / directory.TOKENS))),
        '<h2>All other metrics</h2><div class="charts small">' if others else "",
        *(_metric_chart(log, x, name, _OTHERS.get(name, _Metric(name, ""))) for name in others),
        "</div>" if others else "",
        _reproduction(log),
        html_page.details("Configuration", _table(log.config)),
        html_page.details("Versions", _table(log.setup)),
    ]
    state = "finished" if log.finished is not None else "not finished"
    return html_page.page(
        log.title,
        f"{log.env_steps} environment steps, {state}",
        sections,
        style=token_page.STYLE,
        script=token_page.SCRIPT,
    )


def _tiles(log: RunLog) -> str:
    tiles = []
    if log.best is not None:
        place = f"at environment step {log.best.env_step} of {log.env_steps}"
        tiles.append(("Best reward", f"{log.best.reward:.4f}", place))
    tiles += _score_tiles(log)
    fifths = log.episodes.fifths()
    if fifths is not None:
        note = f"in the last fifth of the steps; {fifths[0]:.3f} in the first"
        tiles.append(("Mean reward", f"{fifths[1]:.3f}", note))
    for name in ("runnable_rate", "kl_to_reference"):
        title, unit, _, is_share = _LEADING[name]
        values = log.column(name)
        values = values[np.isfinite(values)][-max(1, len(values) // 5) :]
        if len(values):
            text = format(values.mean(), ".0%" if is_share else ".3g")
            note = "last fifth of the updates"
            tiles.append((title, text, note if is_share else f"{unit}, {note}"))
    cells = "".join(
        f'<div class="tile"><div>{title}</div><b>{value}</b><small>{note}</small></div>'
        for title, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _score_tiles(log: RunLog) -> list[tuple[str, str, str]]:
    """Holdout score of the best program, and the best baseline."""
    if log.scores is None:
        return []
    tiles = []
    holdout = log.scores.best.holdout if log.scores.best else None
    if holdout is not None and holdout.score is not None:
        note = f"{log.scores.num_holdout_rows} rows that no reward saw"
        if holdout.interval is not None:
            note = "95 % interval {:.3f} to {:.3f}, ".format(*holdout.interval) + note
        tiles.append(("Score on the holdout", f"{holdout.score:.4f}", note))
    ran = [(p.reward, p.name) for p in log.scores.baselines if p.reward is not None]
    if ran:
        reward, name = max(ran)
        tiles.append(("Best baseline", f"{reward:.4f}", f"{name}, default settings"))
    return tiles


def _metric_chart(log: RunLog, x: Float[np.ndarray, "u"], name: str, metric: _Metric) -> str:
    y = log.column(name)
    if not np.isfinite(y).any():
        return ""
    size = _LARGE if name in _LEADING else _SMALL
    return _line_chart(x, charts.smoothed(y, metric.series), metric, size)


def _line_chart(
    x: Float[np.ndarray, "u"],
    lines: list[Line],
    metric: _Metric,
    size: tuple[float, float] = _LARGE,
) -> str:
    figure, (axes,) = charts.figure(*size)
    charts.label(axes, x=_X_LABEL, y=metric.unit)
    charts.draw_lines(axes, x, lines)
    axes.set_xlim(0, x[-1] * 1.02)
    if metric.is_share:
        charts.show_shares(axes)
    shown = charts.readouts(x, lines, ".0%" if metric.is_share else ".4g")
    return html_page.chart(metric.title, "", charts.to_svg(figure, shown), lines)


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
            layers.append(Line(kind, series, np.histogram(chosen, edges)[0] / totals))
    figure, (axes,) = charts.figure(*_LARGE)
    charts.label(axes, x=_X_LABEL, y="share of the programs")
    charts.draw_bars(axes, edges, layers)
    axes.set_xlim(0, edges[-1] * 1.02)
    charts.show_shares(axes, float(np.sum([layer.y for layer in layers], axis=0).max()))
    shown = [
        (float(edges[i : i + 2].mean()), f"to {edges[i + 1]:g}: {_shares(layers, i) or 'none'}")
        for i in range(num_bars)
    ]
    return html_page.chart("Errors by kind", "", charts.to_svg(figure, shown), layers)


def _shares(layers: list[Line], bar: int) -> str:
    return ", ".join(f"{layer.name} {layer.y[bar]:.0%}" for layer in layers if layer.y[bar] > 0)


def _reproduction(log: RunLog) -> str:
    command = str(log.setup["command"])
    flags_file = shlex.quote(str(log.path / directory.FLAGS))
    anew = html.escape(f"{log.command('train')} --flagfile={flags_file} --run_dir=NEW_FOLDER")
    same = f"<p>The same settings, defaults included, in a new folder:</p><pre>{anew}</pre>"
    commit = log.setup.get("git_commit") or "unknown"
    return (
        "<h2>Repeat this run</h2><p>It was started by</p>"
        f"<pre>{html.escape(command)}</pre>"
        + ("" if log.is_in_python else same)
        + f"<p>Commit of the code: <code>{html.escape(commit)}</code></p>"
    )


def _table(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>"
        f"{html.escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'
