"""Reward against KL: curves of methods, their differences at the same KL, and the soft optimum."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from benchmarks.search import Protocol
from etpo_jax.reproduction import statistics
from etpo_jax.reproduction.measures import scores_of
from etpo_jax.reproduction.tables import INTERVALS, MISSING, Table
from etpo_jax.runs import charts
from etpo_jax.runs.charts import Line

MATCHED_KL = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""KL to the reference, nats per action, at which methods are compared."""
SOFT_BETAS = (0.05, 0.1, 0.2)
"""Values of beta whose soft optimum is shown."""
SHOWN_SHARE = 0.75
"""Share of the runs of every data set that must reach a KL for the mean to be drawn there."""
_GRID = np.linspace(0.1, 5.0, 99)

Frontiers = dict[str, dict[tuple, np.ndarray]]
"""Method to data set and seed to the reward at each KL of `_GRID`, NaN beyond what was reached."""


class Tilted(NamedTuple):
    """Programs of the reference, weighted with exp(reward / beta).

    Attributes:
      reward: mean reward under the weights.
      kl: KL to the reference, nats per action.
      effective: Kish's effective number of programs, 1 / sum of squared weights.
    """

    reward: float
    kl: float
    effective: float


def swept(protocol: Protocol, rows: pd.DataFrame) -> Frontiers:
    """The values of beta of each method's best setting, by the last fifth of each run."""
    found: Frontiers = {}
    for method, chosen in _swept(protocol, rows).items():
        for key, part in chosen.groupby(["dataset", "seed"]):
            if part.beta.nunique() >= 4:
                found.setdefault(method, {})[key] = _curve(part.kl_fifth_5, part.reward_fifth_5)
    return found


def paths(found: Mapping[str, pd.DataFrame]) -> Frontiers:
    """The fifths of each run of the evaluation."""
    found_paths: Frontiers = {}
    for method, rows in found.items():
        if not _is_untrained(rows):
            kl, reward = (rows[[f"{n}_fifth_{k}" for k in range(1, 6)]] for n in ("kl", "reward"))
            curves = map(_curve, kl.to_numpy(float), reward.to_numpy(float))
            found_paths[method] = dict(zip(rows.index, curves, strict=True))
    return found_paths


def _is_untrained(rows: pd.DataFrame) -> bool:
    """True for runs that have stayed at the reference."""
    return not (rows.kl_fifth_5 > 0).any()


def _curve(kl: Sequence[float], reward: Sequence[float]) -> Float[np.ndarray, "k"]:
    order = np.argsort(kl)
    x, y = np.asarray(kl)[order], np.asarray(reward)[order]
    return np.interp(_GRID, x, y, left=np.nan, right=np.nan)


def sweep(protocol: Protocol, rows: pd.DataFrame) -> Table:
    """Reward, KL and J of each method and beta."""
    lines = []
    for method, chosen in _swept(protocol, rows).items():
        for beta, part in sorted(chosen.groupby("beta"), key=lambda item: float(item[0])):
            by_cell = part.set_index(["dataset", "seed"])
            js = [by_cell.reward_fifth_5 - b * by_cell.kl_fifth_5 for b in protocol.criterion_betas]
            columns = [by_cell.reward_fifth_5, by_cell.kl_fifth_5, *js, by_cell.repeated]
            columns += [by_cell[n] for n in ("final_reward", "final_kl", "final_kl_full")]
            lines.append([method, beta, str(len(part)), *(mean_text(c) for c in columns)])
    header = ["method", "beta", "runs", "reward", "KL"]
    header += [f"J at {b:g}" for b in protocol.criterion_betas]
    header += ["repeated", "final reward", "final KL", "final full KL"]
    note = "The last fifth of the runs, and fresh samples of the final policies."
    return Table("sweep", "Values of beta", header, lines, [note])


def matched(frontiers: Frontiers) -> Table:
    """Paired differences of every two methods at the same KL, where some pair reaches it."""
    lines = []
    for ours, other in itertools.combinations(frontiers, 2):
        keys = [key for key in frontiers[ours] if key in frontiers[other]]
        gaps = pd.Series({key: frontiers[ours][key] - frontiers[other][key] for key in keys})
        for kl in MATCHED_KL:
            at = gaps.map(lambda gap, kl=kl: float(np.interp(kl, _GRID, gap))).dropna()
            at.index = pd.MultiIndex.from_tuples(at.index, names=["dataset", "seed"])
            if len(at):
                pairs = f"{len(at)} of {len(keys)}"
                lines.append([f"{ours} less {other}", f"{kl:g}", pairs, mean_text(at, "+.3f")])
    header = ["methods", "KL, nats", "pairs", "difference of reward"]
    notes = ["Pairs whose two curves both reach this KL. " + INTERVALS]
    return Table("matched", "Reward at the same KL", header, lines, notes)


def soft_optimum(rewards: pd.DataFrame) -> Table:
    """Reward and KL of the soft optimum on each data set, without training."""
    lines = []
    for name, column in rewards.items():
        known = column.dropna().to_numpy()
        cells = [
            f"{r:.3f} at {kl:.2f}" for r, kl, _ in (tilted(known.tolist(), b) for b in SOFT_BETAS)
        ]
        lines.append([str(name), str(len(known)), f"{known.mean():.3f}", *cells])
    header = ["data set", "programs", "mean reward", *(f"beta {b:g}" for b in SOFT_BETAS)]
    note = "Programs of the reference, weighted with exp(reward / beta): reward at nats of KL."
    return Table("soft_optimum", "The soft optimum", header, lines, [note])


def settings(protocol: Protocol, drawn: pd.DataFrame, rewards: pd.DataFrame) -> Figure:
    """Draws reward against KL of every setting of the search."""
    figure, (axes,) = charts.figure(7.5, 4.8)
    for series, method in enumerate(searched_methods(protocol, drawn)):
        rows = drawn[drawn.algorithm == method]
        means = rows.groupby("setting")[["kl_fifth_5", "reward_fifth_5"]].mean()
        line = Line(method, series, np.array([]))
        axes.plot(*means.to_numpy().T, "o", color=line.colour, label=line.name)
    best = _mean_soft_optimum(rewards, drawn.dataset.unique())
    charts.draw_lines(axes, _GRID, best)
    charts.label(axes, x="KL to the reference, nats per action", y="mean reward")
    charts.legend(axes)
    return figure


def figure(frontiers: Frontiers, rewards: pd.DataFrame) -> Figure:
    """Draws reward against KL for each method, and the soft optimum on the same data sets."""
    figure, (axes,) = charts.figure(7.5, 4.8)
    lines = []
    for series, (method, curves) in enumerate(frontiers.items()):
        columns = pd.DataFrame(list(curves.values()), pd.MultiIndex.from_tuples(curves))
        lines.append(line_of(method, series, columns))
    lines += _mean_soft_optimum(rewards, list(dict.fromkeys(dataset for dataset, _ in curves)))
    charts.label(axes, x="KL to the reference, nats per action", y="mean reward")
    charts.draw_lines(axes, _GRID, lines)
    charts.legend(axes)
    return figure


def learning(found: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws reward and KL of each fifth of the runs."""
    figure, panels = charts.figure(9, 3.8, columns=2)
    share = np.arange(0.1, 1, 0.2)
    titles = {"reward": "mean reward", "kl": "KL, nats per action"}
    # The untrained model, which has no path, is last: the others look as in `figure`.
    methods = sorted(found, key=lambda method: _is_untrained(found[method]))
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        fifths = [f"{name}_fifth_{k}" for k in range(1, 6)]
        lines = [line_of(m, series, found[m][fifths]) for series, m in enumerate(methods)]
        charts.label(axes, x="share of the run", y=title)
        charts.draw_lines(axes, share, lines)
        charts.legend(axes)
    return figure


def tilted(rewards: Sequence[float], beta: float) -> Tilted:
    """Estimates the soft optimum rho(a) exp(r(a) / beta) / Z by importance sampling from rho.

    Nothing is learnt. Each action counts for itself: all prompts of a table are taken as one, and
    the value of a next step is left out. N programs show at most log N nats, and where few of them
    carry the weight the estimate is rough.

    Args:
      rewards: rewards of programs that the reference sampled.
      beta: reward per nat.
    """
    reward_n = np.asarray(rewards, np.float64)
    weight_n = np.exp((reward_n - reward_n.max()) / beta)
    weight_n /= weight_n.sum()
    seen_n = weight_n > 0
    kl = float(np.sum(weight_n[seen_n] * np.log(weight_n[seen_n] * len(reward_n))))
    return Tilted(float(weight_n @ reward_n), kl, float(1 / np.sum(np.square(weight_n))))


def _mean_soft_optimum(rewards: pd.DataFrame, datasets: Sequence[str]) -> list[Line]:
    """A line with the mean over the data sets whose rewards are known; none without any."""
    best = [_soft_optimum(rewards[d].dropna().to_numpy()) for d in datasets if d in rewards]
    return [Line("soft optimum", 6, np.mean(best, axis=0))] if best else []


def _soft_optimum(rewards: Float[np.ndarray, "n"]) -> Float[np.ndarray, "k"]:
    points = [tilted(rewards.tolist(), beta)[:2] for beta in np.geomspace(0.01, 3, 60)[::-1]]
    reward_b, kl_b = np.array(points).T
    return np.interp(_GRID, kl_b, reward_b, right=np.nan)


def _swept(protocol: Protocol, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each method's best setting with any beta, on the seeds of the sweep."""
    found: dict[str, pd.DataFrame] = {}
    if "final_kl" not in rows:
        return found
    for stage in protocol.stages:
        for method in stage.methods if stage.vary else ():
            numbers = protocol.candidates(stage, method, rows)
            if len(numbers) != 1:
                continue
            setting = protocol.draws(method)[numbers[0]]
            fixed = [n for n in protocol.setting_names if n not in stage.vary]
            mine = rows[(rows.algorithm == method) & rows.seed.isin(stage.seeds)]
            mine = mine[mine.dataset.isin(stage.datasets)].dropna(subset="final_kl")
            chosen = mine[np.all([mine[n] == setting.get(n, "") for n in fixed], axis=0)]
            found |= {method: chosen} if len(chosen) else {}
    return found


def line_of(name: str, series: int, columns: pd.DataFrame) -> Line:
    """Mean and interval of each column that `SHOWN_SHARE` of the runs have a value in."""
    values_3k = np.full((3, columns.shape[1]), np.nan)
    share_dk = columns.notna().groupby(level=0).mean()
    is_known_k = (share_dk >= SHOWN_SHARE).all().to_numpy()
    if is_known_k.any():
        known = columns.loc[:, is_known_k]
        found = statistics.mean(np.array([scores_of(known[name]) for name in known]))
        values_3k[:, is_known_k] = found.value, found.low, found.high
    return Line(name, series, values_3k[0], values_3k[1:])


def mean_text(values: pd.Series, spec: str = ".3f") -> str:
    """Mean and interval of `scores_of`; nothing where some run has no value."""
    return MISSING if values.isna().any() else statistics.mean(scores_of(values)).text(spec)


def searched_methods(protocol: Protocol, rows: pd.DataFrame) -> Sequence[str]:
    """The methods whose settings are searched and that have rows, in the protocol's order."""
    names = [n for n, given in protocol.methods.items() if given.get("searched", True)]
    return [name for name in names if (rows.algorithm == name).any()]
