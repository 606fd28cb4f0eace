"""The page of a search: every table and figure of report.md, rebuilt from the rows of its runs.

    python -m benchmarks.search_page --study=docs/studies/methods

reads `protocol.toml`, `runs.csv` and, if it is there, `reference_rewards.csv` (a column of rewards
of the reference's programs for each data set), and writes `report.md` and its figures beside them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import flags
from jaxtyping import Float
from matplotlib.figure import Figure

from benchmarks import search
from benchmarks.search import Protocol
from env import command_line
from env.base import UsageError
from etpo_jax.reproduction import statistics
from etpo_jax.reproduction.measures import THRESHOLD
from etpo_jax.reproduction.tables import MISSING, Table
from etpo_jax.runs import charts, files
from etpo_jax.runs.charts import Line

_flags = flags.FlagValues()
_STUDY = flags.DEFINE_string(
    "study", "docs/studies/methods", "Folder of the study.", flag_values=_flags
)

MATCHED_KL = (0.5, 1.0, 1.5, 2.0, 3.0)
"""KL to the reference, nats per action, at which methods are compared."""
SOFT_BETAS = (0.05, 0.1, 0.2)
_GRID = np.linspace(0.1, 5.0, 99)
_STEPS = f"steps_to_{THRESHOLD}"
_INTERVALS = (
    "Means over data sets of the mean over seeds, in brackets 95 % t intervals over seeds. The "
    "data sets are fixed and no sample: an interval says nothing about other tables."
)


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


def main() -> int:
    """Writes the page."""
    folder = Path(_STUDY.value)
    protocol = Protocol.read(folder / "protocol.toml")
    if not (folder / "runs.csv").exists():
        raise UsageError(f"--study={folder}: has no runs.csv")
    rows = search.read_rows(folder / "runs.csv", protocol)
    reference = folder / "reference_rewards.csv"
    rewards = pd.read_csv(reference) if reference.exists() else pd.DataFrame()
    parts = [
        "# One search for all methods",
        f"Made from [protocol.toml](protocol.toml) and the rows of [runs.csv](runs.csv) by\n\n"
        f"    python -m benchmarks.search_page --study={folder}",
        progress(protocol, rows).markdown(),
        *(searched(protocol, method, rows).markdown() for method in _trained(protocol, rows)),
    ]
    found = evaluated(protocol, rows)
    if found:
        parts += [methods(found, protocol).markdown(), by_dataset(found, protocol).markdown()]
        _save(learning(found), folder / "learning.svg")
        parts.append("### Reward and KL while learning\n\n![Curves](learning.svg)\n\n" + _INTERVALS)
        walked = paths(found)
        _save(frontier_figure(walked, rewards), folder / "path.svg")
        parts.append("### Reward against KL while learning\n\n![Path](path.svg)\n\n" + _PATH)
        parts.append(matched(walked).markdown())
    swept = frontiers(protocol, rows)
    if swept:
        _save(frontier_figure(swept, rewards), folder / "frontier.svg")
        parts.append("### Reward against KL over beta\n\n![Frontier](frontier.svg)\n\n" + _FRONTIER)
        parts += [sweep(protocol, rows).markdown(), matched(swept).markdown()]
    if len(rewards):
        parts.append(soft_optimum(rewards).markdown())
    if (other := fixed(protocol, rows)).rows:
        parts.append(other.markdown())
    files.replace(folder / "report.md", "\n\n".join(part.strip() for part in parts) + "\n")
    print(f"wrote {folder / 'report.md'}")
    return 0


_READ = (
    "Each seed's points are joined by straight lines and read at the same KL; line and band are "
    "the mean over data sets of the mean over seeds and its 95 % t interval, where every run has "
    "points on both sides. The soft optimum estimates the best that any policy can reach at "
    "that KL: programs of the reference, weighted with exp(reward / beta)."
)
_PATH = f"The five fifths of each run of the evaluation. {_READ}"
_FRONTIER = (
    "The method's best setting with other values of beta; reward and KL are those of fresh samples "
    f"of the final policy. {_READ}"
)


def progress(protocol: Protocol, rows: pd.DataFrame) -> Table:
    """What has been run of each stage."""
    lines = []
    waiting: set[str] = set()  # methods with an earlier stage that is not finished
    for stage in protocol.stages:
        values = np.prod([len(v) for v in stage.vary.values()], dtype=int)
        count = sum(
            min(stage.keep or protocol.num_settings, len(protocol.draws(method)))
            for method in stage.methods
        )
        total = count * len(stage.seeds) * len(stage.datasets) * values
        left = len(search.missing(protocol, stage, rows))
        done = 0 if waiting & set(stage.methods) else total - left
        waiting |= set(stage.methods) if done < total else set()
        lines.append([stage.name, ", ".join(stage.methods), f"{done} of {total}"])
    return Table("progress", "Runs", ["stage", "methods", "finished"], lines)


def searched(protocol: Protocol, method: str, rows: pd.DataFrame) -> Table:
    """The settings of a method, the best first, with the criterion on the selection seeds."""
    stages = [s for s in protocol.stages if method in s.methods and not s.vary]
    seeds = [seed for stage in stages[:-1] for seed in stage.seeds]
    mine = rows[(rows.algorithm == method) & rows.seed.isin(seeds)]
    scores = protocol.scores(method, mine).sort_values(["count", "J"], ascending=False)
    names = [n for n in protocol.setting_names if n in protocol.draws(method)[0]]
    lines = []
    for number, score in scores.iterrows():
        runs = mine[mine.setting == number]
        means = [f"{runs[name].mean():.3f}" for name in ("reward_fifth_5", "kl_fifth_5")]
        setting = protocol.draws(method)[int(number)]
        count = f"{int(score['count'])}"
        lines.append([str(number), *map(setting.get, names), count, f"{score.J:.3f}", *means])
    betas = " and ".join(f"{beta:g}" for beta in protocol.criterion_betas)
    return Table(
        f"search_{method}",
        f"Search: {method}",
        ["setting", *names, "runs", "J", "reward", "KL"],
        lines,
        [f"J = reward - beta0 KL of the last fifth, mean over beta0 = {betas}."],
    )


def evaluated(protocol: Protocol, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The evaluation of each method's best setting, on the runs that every method has.

    Methods that are evaluated on other data sets or seeds than the first one are left out.

    Returns:
      Method to its rows by data set and seed, with `J_beta0` for each beta0 and their mean `J`.
    """
    kept: dict[str, pd.DataFrame] = {}
    cells: set[tuple] = set()
    for stage in protocol.stages:
        for method in stage.methods if not stage.vary else ():
            numbers = protocol.candidates(stage, method, rows)
            cell = (*stage.seeds, *stage.datasets)
            if len(numbers) == 1 and (cells or {cell}) == {cell}:
                cells = {cell}
                mine = rows[(rows.algorithm == method) & rows.seed.isin(stage.seeds)]
                setting = protocol.draws(method)[numbers[0]]
                is_best = np.all([mine[n] == setting.get(n, "") for n in protocol.setting_names], 0)
                chosen = mine[is_best].set_index(["dataset", "seed"])
                kept |= {method: chosen} if len(chosen) else {}
    if len(kept) < 2:
        return {}
    common = pd.concat([part.algorithm for part in kept.values()], axis=1, join="inner").index
    found, betas = {}, protocol.criterion_betas
    for method, part in kept.items():
        js = {f"J_{b:g}": part.reward_fifth_5 - b * part.kl_fifth_5 for b in betas}
        js["J"] = pd.DataFrame(js).mean(axis=1)
        steps = part[_STEPS].fillna(protocol.num_env_steps)
        found[method] = part.assign(**js, **{_STEPS: steps}).loc[common]
    return found


def methods(found: Mapping[str, pd.DataFrame], protocol: Protocol) -> Table:
    """The methods over all data sets, and the first one less each other one that was trained."""
    ours = next(iter(found))
    others = [n for n in found if n != ours and protocol.methods[n].get("searched", True)]
    lines = [["runs", *(str(len(rows)) for rows in found.values()), *[""] * len(others)]]
    for column, (title, spec) in _columns(protocol).items():
        scores = {name: _split(rows[column]) for name, rows in found.items()}
        cells = [_mean(part, spec) for part in scores.values()]
        for other in others:
            pairs = zip(scores[ours], scores[other], strict=True)
            cells.append(_mean([a - b for a, b in pairs], f"+{spec}"))
        lines.append([title, *cells])
    scores = {name: _split(rows["J"]) for name, rows in found.items()}
    ranks = statistics.mean_ranks(scores).values()
    lines.append(["rank by mean J", *(rank.text(".2f") for rank in ranks), *[""] * len(others)])
    trimmed = [f"{statistics.trimmed_mean(_split(r.reward_fifth_5)):.3f}" for r in found.values()]
    lines.append(["trimmed mean reward", *trimmed, *[""] * len(others)])
    notes = [
        f"{_INTERVALS} Differences are paired by data set and seed; ranks are among runs of the "
        f"same data set and seed. Steps count {protocol.num_env_steps} where a run never reached "
        "the reward. The trimmed mean leaves out the best and the worst quarter of the runs. Final "
        "figures are of fresh samples of the last policy; the full KL is to the reference without "
        "support mask.",
    ]
    header = ["", *found, *(f"{ours} less {other}" for other in others)]
    return Table("evaluation", "Evaluation", header, lines, notes)


def by_dataset(found: Mapping[str, pd.DataFrame], protocol: Protocol) -> Table:
    """Reward, KL and J of each method on each data set."""
    datasets = next(iter(found.values())).index.unique("dataset")
    names = ("reward_fifth_5", "kl_fifth_5", "J")
    lines = [
        [dataset, name, *(_mean([rows.loc[dataset][n].to_numpy()]) for n in names)]
        for dataset in datasets
        for name, rows in found.items()
    ]
    header = ["data set", "method", *(_columns(protocol)[n][0] for n in names)]
    return Table("datasets", "By data set", header, lines)


def learning(found: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws reward and KL of each fifth of the runs."""
    figure, panels = charts.figure(9, 3.8, columns=2)
    share = np.arange(0.1, 1, 0.2)
    titles = {"reward": "mean reward", "kl": "KL, nats per action"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        lines = []
        for series, (method, rows) in enumerate(found.items()):
            fifths = [f"{name}_fifth_{k}" for k in range(1, 6)]
            lines.append(_line(method, series, [part.T for part in _split(rows[fifths])]))
        charts.label(axes, x="share of the run", y=title)
        charts.draw_lines(axes, share, lines)
        charts.legend(axes)
    return figure


def frontiers(protocol: Protocol, rows: pd.DataFrame) -> Frontiers:
    """The values of beta of each method's best setting, by fresh samples of the final policy."""
    found: Frontiers = {}
    for method, chosen in _swept(protocol, rows).items():
        for key, part in chosen.groupby(["dataset", "seed"]):
            if part.beta.nunique() >= 4:
                found.setdefault(method, {})[key] = _curve(part.final_kl, part.final_reward)
    return found


def paths(found: Mapping[str, pd.DataFrame]) -> Frontiers:
    """The fifths of each run of the evaluation."""
    found_paths: Frontiers = {}
    for method, rows in found.items():
        if (rows.kl_fifth_5 > 0).any():  # the untrained model stays at 0
            kl, reward = (rows[[f"{n}_fifth_{k}" for k in range(1, 6)]] for n in ("kl", "reward"))
            curves = map(_curve, kl.to_numpy(float), reward.to_numpy(float))
            found_paths[method] = dict(zip(rows.index, curves, strict=True))
    return found_paths


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
            js = [by_cell.final_reward - b * by_cell.final_kl for b in protocol.criterion_betas]
            columns = [by_cell[n] for n in ("final_reward", "final_kl", "final_kl_full")]
            columns += [*js, by_cell.final_repeated, by_cell.final_first_distinct]
            lines.append([method, beta, str(len(part)), *(_mean(_split(c)) for c in columns)])
    header = ["method", "beta", "runs", "reward", "KL", "full KL"]
    header += [f"J at {b:g}" for b in protocol.criterion_betas]
    header += ["repeated", "distinct of 64"]
    return Table("sweep", "Values of beta", header, lines, ["Fresh samples of the final policy."])


def matched(swept: Frontiers) -> Table:
    """Paired differences of the first method and each other one at the same KL."""
    ours, *others = swept
    lines = []
    for other in others:
        keys = [key for key in swept[ours] if key in swept[other]]
        gaps = pd.Series({key: swept[ours][key] - swept[other][key] for key in keys})
        for kl in MATCHED_KL:
            at = gaps.map(lambda gap, kl=kl: float(np.interp(kl, _GRID, gap))).dropna()
            at.index = pd.MultiIndex.from_tuples(at.index, names=["dataset", "seed"])
            text = statistics.mean(_split(at)).text("+.3f") if len(at) else MISSING
            lines.append([f"{ours} less {other}", f"{kl:g}", f"{len(at)} of {len(keys)}", text])
    header = ["methods", "KL, nats", "pairs", "difference of reward"]
    notes = ["Pairs whose two curves both reach this KL. " + _INTERVALS]
    return Table("matched", "Reward at the same KL", header, lines, notes)


def soft_optimum(rewards: pd.DataFrame) -> Table:
    """Reward and KL of the soft optimum on each data set, without training."""
    lines = []
    for name, column in rewards.items():
        known = column.dropna().to_numpy()
        cells = [f"{r:.3f} at {kl:.2f}" for r, kl, _ in (tilted(known, b) for b in SOFT_BETAS)]
        lines.append([str(name), str(len(known)), f"{known.mean():.3f}", *cells])
    header = ["data set", "programs", "mean reward", *(f"beta {b:g}" for b in SOFT_BETAS)]
    note = "Programs of the reference, weighted with exp(reward / beta): reward at nats of KL."
    return Table("soft_optimum", "The soft optimum", header, lines, [note])


def fixed(protocol: Protocol, rows: pd.DataFrame) -> Table:
    """Reward and KL of the methods that were not searched, on each data set."""
    lines = []
    for method, given in protocol.methods.items():
        mine = rows[rows.algorithm == method]
        for dataset, part in mine.groupby("dataset") if not given.get("searched", True) else ():
            cells = [
                _mean([part[name].to_numpy(float)])
                for name in ("reward_fifth_1", "reward_fifth_3", "reward_fifth_5", "kl_fifth_5")
            ]
            lines.append([method, dataset, str(len(part)), *cells])
    header = ["method", "data set", "runs", "first fifth", "middle fifth", "last fifth", "KL"]
    note = "Mean reward, and KL of the last fifth, of flagfiles as they are."
    return Table("fixed", "Methods that were not searched", header, lines, [note])


def frontier_figure(swept: Frontiers, rewards: pd.DataFrame) -> Figure:
    """Draws reward against KL for each method, and the soft optimum on the same data sets."""
    figure, (axes,) = charts.figure(7.5, 4.8)
    lines = []
    for series, (method, curves) in enumerate(swept.items()):
        datasets = dict.fromkeys(dataset for dataset, _ in curves)
        parts = [np.array([c for k, c in curves.items() if k[0] == d]).T for d in datasets]
        lines.append(_line(method, series, parts))
    datasets = [d for d in datasets if d in rewards]
    if datasets:
        best = [_soft_optimum(rewards[d].dropna().to_numpy()) for d in datasets]
        lines.append(Line("soft optimum", 6, np.mean(best, axis=0)))
    charts.label(axes, x="KL to the reference, nats per action", y="mean reward")
    charts.draw_lines(axes, _GRID, lines)
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


def _soft_optimum(rewards: Float[np.ndarray, "n"]) -> Float[np.ndarray, "k"]:
    points = [tilted(rewards, beta)[:2] for beta in np.geomspace(0.01, 3, 60)[::-1]]
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


def _save(figure: Figure, path: Path) -> None:
    files.replace(path, charts.to_bytes(figure, "svg"))


def _columns(protocol: Protocol) -> dict[str, tuple[str, str]]:
    """Column of the evaluation to its title and format."""
    return {
        "reward_fifth_5": ("reward, last fifth", ".3f"),
        "kl_fifth_5": ("KL, last fifth, nats", ".2f"),
        **{f"J_{b:g}": (f"J = reward - {b:g} KL", ".3f") for b in protocol.criterion_betas},
        "J": ("mean J", ".3f"),
        _STEPS: (f"steps to a reward of {THRESHOLD}", ".0f"),
        "reward_best": ("best reward", ".3f"),
        "distinct_programs": ("distinct programs of the last 64", ".1f"),
        "repeated": ("executed before, last fifth", ".0%"),
        "final_reward": ("final reward", ".3f"),
        "final_kl": ("final KL, nats", ".2f"),
        "final_kl_full": ("final full KL, nats", ".2f"),
        "seconds": ("seconds", ".0f"),
    }


def _trained(protocol: Protocol, rows: pd.DataFrame) -> Sequence[str]:
    names = [n for n, given in protocol.methods.items() if given.get("searched", True)]
    return [name for name in names if (rows.algorithm == name).any()]


def _split(values: pd.Series | pd.DataFrame) -> statistics.Scores:
    """One array of seeds per data set."""
    return [part.to_numpy(float) for _, part in values.groupby(level="dataset")]


def _line(name: str, series: int, scores: statistics.Scores) -> Line:
    found = statistics.mean(scores)
    return Line(name, series, found.value, np.array([found.low, found.high]))


def _mean(scores: statistics.Scores, spec: str = ".3f") -> str:
    """Mean and interval; nothing where some runs have no value."""
    is_known = all(np.isfinite(part).all() for part in scores)
    return statistics.mean(scores).text(spec) if is_known else MISSING


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
