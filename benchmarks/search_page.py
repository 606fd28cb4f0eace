"""The page of a search: every table and figure of report.md, rebuilt from the rows of its runs.

    python -m benchmarks.search_page --study=docs/studies/comparison

reads `protocol.toml`, `runs.csv` and, if it is there, `reference_rewards.csv` (a column of rewards
of the reference's programs for each data set), and writes `report.md` and its figures beside them.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags
from matplotlib.figure import Figure

from benchmarks import frontiers, search
from benchmarks.frontiers import mean_text, searched_methods
from benchmarks.search import Protocol
from env import command_line
from env.base import UsageError
from etpo_jax.reproduction import statistics
from etpo_jax.reproduction.measures import THRESHOLD, scores_of
from etpo_jax.reproduction.tables import INTERVALS, Table
from etpo_jax.runs import charts, files

_flags = flags.FlagValues()
_STUDY = flags.DEFINE_string(
    "study", "docs/studies/comparison", "Folder of the study.", flag_values=_flags
)

_SEARCHED = {"reward_fifth_5": "reward", "kl_fifth_5": "KL", "J": "J", "repeated": "repeated"}
_STEPS = f"steps_to_{THRESHOLD}"


def main() -> int:
    """Writes the page."""
    folder = Path(_STUDY.value)
    protocol = Protocol.read(folder / "protocol.toml")
    if not (folder / "runs.csv").exists():
        raise UsageError(f"--study={folder}: has no runs.csv")
    rows = search.read_rows(folder / "runs.csv", protocol)
    reference = folder / "reference_rewards.csv"
    rewards = pd.read_csv(reference) if reference.exists() else pd.DataFrame()
    is_search = protocol.num_settings > 1
    parts = [
        "# One search for all methods" if is_search else "# Methods with given settings",
        f"Made from [protocol.toml](protocol.toml) and the rows of [runs.csv](runs.csv) by\n\n"
        f"    python -m benchmarks.search_page --study={folder}",
        progress(protocol, rows).markdown(),
    ]
    for method in searched_methods(protocol, rows) if is_search else ():
        parts.append(searched(protocol, method, rows).markdown())
    drawn = draws(protocol, rows)
    if is_search and len(drawn):
        _save(frontiers.settings(protocol, drawn, rewards), folder / "settings.svg")
        parts.append(f"### Settings of the search\n\n![Settings](settings.svg)\n\n{_SETTINGS}")
        parts += [across(protocol, drawn).markdown(), contrasts(protocol, drawn).markdown()]
    if protocol.before:
        earlier = search.read_rows(folder / protocol.before / "runs.csv", protocol)
        parts.append(before(protocol, rows, earlier).markdown())
    found = evaluated(protocol, rows)
    if found:
        for table in (methods, differences, by_dataset):
            parts.append(table(found, protocol).markdown())
        _save(frontiers.learning(found), folder / "learning.svg")
        parts.append("### Reward and KL while learning\n\n![Curves](learning.svg)\n\n" + INTERVALS)
        walked = frontiers.paths(found)
        _save(frontiers.figure(walked, rewards), folder / "path.svg")
        parts.append("### Reward against KL while learning\n\n![Path](path.svg)\n\n" + _PATH)
        parts.append(frontiers.matched(walked).markdown())
    swept = frontiers.swept(protocol, rows)
    if swept:
        _save(frontiers.figure(swept, rewards), folder / "frontier.svg")
        parts.append("### Reward against KL over beta\n\n![Frontier](frontier.svg)\n\n" + _FRONTIER)
        parts += [frontiers.sweep(protocol, rows).markdown(), frontiers.matched(swept).markdown()]
    if len(rewards):
        parts.append(frontiers.soft_optimum(rewards).markdown())
    if (other := fixed(protocol, rows)).rows:
        parts.append(other.markdown())
    files.replace(folder / "report.md", "\n\n".join(part.strip() for part in parts) + "\n")
    print(f"wrote {folder / 'report.md'}")
    return 0


_SETTINGS = (
    "A dot is a setting: means over the data sets on the first seed of the search, last fifth."
)
_READ = (
    "Each seed's points are joined by straight lines and read at the same KL; line and band are "
    "the mean over data sets of the mean over seeds and its 95 % t interval, where three quarters "
    "of the runs of every data set have points on both sides. The soft optimum estimates the best "
    "that any policy can reach at that KL: programs of the reference, weighted with "
    "exp(reward / beta)."
)
_OVER_SETTINGS = (
    "Means over data sets of the mean over settings, in brackets 95 % t intervals. The unit of an "
    "interval is a setting with its runs on all data sets."
)
_PATH = f"The five fifths of each run of the evaluation. {_READ}"
_FRONTIER = (
    "The method's best setting with other values of beta; reward and KL are those of the last "
    f"fifth of the runs. {_READ}"
)


def progress(protocol: Protocol, rows: pd.DataFrame) -> Table:
    """What has been run of each stage."""
    lines = []
    waiting: set[str] = set()  # methods with an earlier stage that is not finished
    for stage in protocol.stages:
        values = np.prod([len(v) for v in stage.vary.values()], dtype=int)
        runs = len(stage.seeds) * len(stage.datasets) * values  # of a setting
        known = sum(len(protocol.candidates(stage, method, rows)) for method in stage.methods)
        done = known * runs - len(search.missing(protocol, stage, rows))
        total = runs * sum(
            min(stage.keep or protocol.num_settings, len(protocol.draws(method)))
            for method in stage.methods
        )
        text = f"{done} of {total}"
        if done and stage.keep and waiting & set(stage.methods):
            text += ", of the best so far"
        waiting |= set(stage.methods) if done < total else set()
        lines.append([stage.name, ", ".join(stage.methods), text])
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


def draws(protocol: Protocol, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of all drawn settings on the first seed of the search, with the criterion `J`."""
    first = next(stage for stage in protocol.stages if not stage.keep)
    chosen = rows[
        rows.algorithm.isin(searched_methods(protocol, rows)) & rows.seed.isin(first.seeds)
    ]
    beta0 = float(np.mean(protocol.criterion_betas))
    return chosen.assign(J=chosen.reward_fifth_5 - beta0 * chosen.kl_fifth_5)


def across(protocol: Protocol, drawn: pd.DataFrame) -> Table:
    """The first method less each other one, setting by setting of the search."""
    ours, *others = searched_methods(protocol, drawn)
    lines = []
    for other in others:
        cells = []
        for column in _SEARCHED:
            wide = drawn.pivot(index=["dataset", "setting"], columns="algorithm", values=column)
            cells.append(mean_text((wide[ours] - wide[other]).dropna(), "+.3f"))
        lines.append([f"{ours} less {other}", str(len(wide)), *cells])
    notes = [
        "Paired by data set and setting: the flags that methods have in common are the same in the "
        f"settings of the same number. {_OVER_SETTINGS} The settings were drawn from the ranges; "
        "all have one seed."
    ]
    header = ["methods", "pairs", *_SEARCHED.values()]
    return Table("across", "Methods over all settings of the search", header, lines, notes)


def contrasts(protocol: Protocol, drawn: pd.DataFrame) -> Table:
    """What each flag with two values changes, over all settings of the search."""
    lines = []
    for method in searched_methods(protocol, drawn):
        rows = drawn[drawn.algorithm == method]
        for name in protocol.setting_names:
            values = [value for value in rows[name].unique() if value]
            if len(values) == 2:
                first, second = sorted(values)
                groups = rows.set_index([rows[name] + " on " + rows.dataset, "setting"])
                sign = np.where(groups[name] == second, 1, -1)
                # The mean over the groups of both values is half the difference.
                cells = [mean_text(2 * sign * groups[column], "+.3f") for column in _SEARCHED]
                lines.append([method, name, f"{second} less {first}", *cells])
    notes = [f"Unpaired differences. {_OVER_SETTINGS}"]
    header = ["method", "flag", "values", *_SEARCHED.values()]
    return Table("contrasts", "Flags over all settings of the search", header, lines, notes)


def before(protocol: Protocol, rows: pd.DataFrame, earlier: pd.DataFrame) -> Table:
    """Compares the runs of an earlier study that had the same settings, data sets and seeds."""
    keys = ["algorithm", "dataset", "seed", *protocol.setting_names]
    beta0 = float(np.mean(protocol.criterion_betas))
    both = rows.merge(earlier, on=keys, suffixes=("", "_before"))
    lines = []
    for method in searched_methods(protocol, both):
        pairs = both[both.algorithm == method].set_index(["dataset", "setting"])
        change = {n: pairs[n] - pairs[f"{n}_before"] for n in _SEARCHED if n != "J"}
        change["J"] = change["reward_fifth_5"] - beta0 * change["kl_fifth_5"]
        means = pd.DataFrame(change).groupby(level=[0, 1]).mean()
        cells = [mean_text(means[name], "+.3f") for name in _SEARCHED]
        lines.append([method, str(len(pairs)), *cells])
    notes = [
        f"Runs of this study less those of [{protocol.before}]({protocol.before}/report.md) with "
        "the same setting, data set and seed, of which each setting's mean is taken. "
        f"{_OVER_SETTINGS}"
    ]
    header = ["method", "pairs", *_SEARCHED.values()]
    return Table("before", "Change since the earlier study", header, lines, notes)


def evaluated(protocol: Protocol, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The evaluation of each method's best setting, on the runs that every method has.

    Methods that are evaluated on other data sets or seeds than the first one are left out.

    Returns:
      Method to its rows by data set and seed, with `J_beta0` for each beta0, their mean `J`, and
      the mean `final_J` of the final policy.
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
        js["final_J"] = part.final_reward - np.mean(betas) * part.final_kl
        steps = part[_STEPS].fillna(protocol.num_env_steps)
        found[method] = part.assign(**js, **{_STEPS: steps}).loc[common]
    return found


def methods(found: Mapping[str, pd.DataFrame], protocol: Protocol) -> Table:
    """The methods over all data sets."""
    lines = [["runs", *(str(len(rows)) for rows in found.values())]]
    for column, (title, spec) in _columns(protocol, found).items():
        lines.append([title, *(mean_text(rows[column], spec) for rows in found.values())])
    scores = {name: scores_of(rows["J"]) for name, rows in found.items()}
    ranks = statistics.mean_ranks(scores).values()
    lines.append(["rank by mean J", *(rank.text(".2f") for rank in ranks)])
    trimmed = [
        f"{statistics.trimmed_mean(scores_of(rows.reward_fifth_5)):.3f}" for rows in found.values()
    ]
    lines.append(["trimmed mean reward", *trimmed])
    if next(iter(found.values())).index.unique("dataset").size > 1:
        dependence = [f"{statistics.dependence(values):.1f}" for values in scores.values()]
        lines.append(["variance of mean J, times that of independent runs", *dependence])
    notes = [
        f"{INTERVALS} Ranks are among runs of the same data set and seed. Steps count "
        f"{protocol.num_env_steps} where a run never reached the reward. The trimmed mean leaves "
        "out the best and the worst quarter of the runs. Final figures are of fresh samples of the "
        "last policy; the full KL is to the reference without support mask."
    ]
    return Table("evaluation", "Evaluation", ["", *found], lines, notes)


def differences(found: Mapping[str, pd.DataFrame], protocol: Protocol) -> Table:
    """Every two trained methods, run by run."""
    trained = [name for name in found if protocol.methods[name].get("searched", True)]
    pairs = list(itertools.combinations(trained, 2))
    lines = []
    for column, (title, spec) in _columns(protocol, found).items():
        gaps = [found[ours][column] - found[other][column] for ours, other in pairs]
        lines.append([title, *(mean_text(gap, f"+{spec}") for gap in gaps)])
    header = ["", *(f"{ours} less {other}" for ours, other in pairs)]
    notes = [f"Paired by data set and seed. {INTERVALS}"]
    return Table("differences", "Differences", header, lines, notes)


def by_dataset(found: Mapping[str, pd.DataFrame], protocol: Protocol) -> Table:
    """Reward, KL and J of each method on each data set."""
    datasets = next(iter(found.values())).index.unique("dataset")
    names = ("reward_fifth_5", "kl_fifth_5", "J")
    lines = [
        [dataset, name, *(mean_text(rows.loc[[dataset], n]) for n in names)]
        for dataset in datasets
        for name, rows in found.items()
    ]
    header = ["data set", "method", *(_columns(protocol, found)[n][0] for n in names)]
    return Table("datasets", "By data set", header, lines)


def fixed(protocol: Protocol, rows: pd.DataFrame) -> Table:
    """Reward and KL of the methods that were not searched, on each data set."""
    lines = []
    for method, given in protocol.methods.items():
        mine = rows[rows.algorithm == method].set_index(["dataset", "seed"])
        by_dataset = mine.groupby("dataset")
        for dataset, part in by_dataset if not given.get("searched", True) else ():
            cells = [
                mean_text(part[name])
                for name in ("reward_fifth_1", "reward_fifth_3", "reward_fifth_5", "kl_fifth_5")
            ]
            lines.append([method, dataset, str(len(part)), *cells])
    header = ["method", "data set", "runs", "first fifth", "middle fifth", "last fifth", "KL"]
    note = "Mean reward, and KL of the last fifth, of flagfiles as they are."
    return Table("fixed", "Methods that were not searched", header, lines, [note])


def _save(figure: Figure, path: Path) -> None:
    files.replace(path, charts.to_bytes(figure, "svg"))


def _columns(protocol: Protocol, found: Mapping[str, pd.DataFrame]) -> dict[str, tuple[str, str]]:
    """Column of the evaluation to its title and format."""
    columns = {
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
        "final_J": ("final mean J", ".3f"),
        "final_kl_full": ("final full KL, nats", ".2f"),
    }
    if all((rows[_STEPS] == protocol.num_env_steps).all() for rows in found.values()):
        del columns[_STEPS]  # no run reached the reward
    return columns


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
