"""Tables of a grid as Markdown and CSV: our comparisons, and the paper's tables beside our runs."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from etpo_jax.reproduction import measures, published, statistics
from etpo_jax.reproduction.measures import Results, Run
from etpo_jax.runs import files

MISSING = "-"
INTERVALS = (
    "Means over data sets of the mean over seeds, in brackets 95 % t intervals. The unit of an "
    "interval is a seed with its runs on all data sets, since they share random numbers. The data "
    "sets are fixed and no sample: an interval says nothing about other tables."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      name: name of its files, without suffix.
      title: heading of the table.
      header: title of each column.
      rows: one text per column in each row.
      notes: sentences below the table.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Formats the table with title and notes."""
        lines = [
            f"### {self.title}",
            "",
            *(f"| {' | '.join(row)} |" for row in [self.header, ["---"] * len(self.header)]),
            *(f"| {' | '.join(row)} |" for row in self.rows),
            "",
            *(f"{note}\n" for note in self.notes),
        ]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes NAME.md and NAME.csv."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        files.replace(folder / f"{self.name}.md", self.markdown())
        files.replace(folder / f"{self.name}.csv", text.getvalue())


def methods(results: Results) -> Table:
    """Compares algorithms over common data sets: reward, diversity, KL to the reference."""
    datasets = measures.common_datasets(results)
    columns = {
        name: measures.scores(by_dataset, "reward_fifth_5", datasets)
        for name, by_dataset in results.items()
    }
    ranks = _ranks(columns)
    header = ["algorithm", "runs", *measures.MEASURES.values(), "trimmed mean reward", "mean rank"]
    rows = []
    for name, by_dataset in results.items():
        cells = [name, str(sum(len(by_dataset[dataset]) for dataset in datasets))]
        for key in measures.MEASURES:
            cells.append(_mean(measures.scores(by_dataset, key, datasets)))
        cells.append(f"{statistics.trimmed_mean(columns[name]):.3f}" if datasets else MISSING)
        rows.append([*cells, ranks.get(name, MISSING)])
    return Table(
        "methods",
        f"Methods over {len(datasets)} data set" + "s" * (len(datasets) != 1),
        header,
        rows,
        [
            f"Data sets: {', '.join(datasets) or 'none that every algorithm has finished'}. "
            f"{INTERVALS} The trimmed mean leaves out the best and the worst quarter of the runs. "
            "Ranks are among the runs of the same data set and seed, by the mean reward of the "
            "last fifth of the actions (a program that fails counts -1); rank 1 is best.",
        ],
    )


def by_dataset(results: Results) -> Table:
    """Compares the mean rewards of the algorithms data set by data set."""
    datasets = list(dict.fromkeys(name for rows in results.values() for name in rows))
    rows = []
    for dataset in datasets:
        rewards = {
            name: measures.scores(runs, "reward_fifth_5", [dataset])
            for name, runs in results.items()
            if dataset in runs
        }
        rows.append(
            [dataset, *(_mean(rewards[name]) if name in rewards else MISSING for name in results)]
        )
    return Table(
        "datasets",
        "Mean reward of the last fifth, by data set",
        ["data set", *results],
        rows,
        ["Means over seeds with 95 % t intervals."],
    )


def pairs(results: Results, baseline: str) -> Table:
    """Compares all algorithms with one, run by run with the same data set and seed."""
    names = ("reward_fifth_5", "reward_best", "distinct_programs", "kl_fifth_5")
    rows = []
    for name in results:
        if name == baseline:
            continue
        cells = [name]
        for measure in names:
            cells.append(_mean(measures.differences(results, (name, baseline), measure), "+.3f"))
        rows.append(cells)
    return Table(
        f"against_{baseline}",
        f"Differences to {baseline}, run by run",
        ["algorithm", *(measures.MEASURES[name] for name in names)],
        rows,
        [f"(Algorithm - {baseline}) on the same data set and seed. {INTERVALS}"],
    )


def published_scores(
    name: str, title: str, results: Results, columns: Mapping[str, Sequence[str]]
) -> Table:
    """Puts our best rewards by data set beside the published ones (Tables 2, 4 and 5).

    Args:
      name: name of the table's files.
      title: heading of the table.
      results: finished runs.
      columns: our algorithm to the paper's columns in front of its own; an algorithm without runs
        leaves out its own column only.
    """
    datasets = list(dict.fromkeys(dataset for rows in results.values() for dataset in rows))
    header = ["data set"]
    for algorithm, theirs in columns.items():
        header += [f"{method}, paper" for method in theirs]
        header += [f"{algorithm}, ours"] if algorithm in results else []
    rows = []
    for dataset in datasets:
        printed = published.SCORES.get(dataset, {})
        cells = [dataset]
        for algorithm, theirs in columns.items():
            cells += [str(printed.get(method, MISSING)) for method in theirs]
            if algorithm in results:
                cells.append(_best(results[algorithm].get(dataset, ())))
        rows.append(cells)
    return Table(
        name,
        title,
        header,
        rows,
        [
            "The paper's results are for CodeLlama-7B: the best program of one run and its "
            "deviation over five splits. Our results are for the model that was run: mean over "
            "seeds of the best reward, in brackets its 95 % t interval, after ± the mean over "
            "seeds of the best program's deviation over its splits."
        ],
    )


def perplexity(rows: Sequence[tuple[str, str, float, float]]) -> Table:
    """Puts our perplexities before and after training below the published ones (Table 3).

    Args:
      rows: name of the run, name of the text, perplexity before, perplexity after.
    """

    def row(name: str, text: str, before: float, after: float) -> list[str]:
        return [name, text, f"{before:.4f}", f"{after:.4f}", f"{100 * (after / before - 1):+.2f} %"]

    printed = [
        row("CodeLlama-7B, ETPO, paper", text, before, after)
        for text, (before, after) in published.PERPLEXITY.items()
    ]
    return Table(
        "table3",
        "Table 3: perplexity before and after training",
        ["run", "text", "before", "after", "change"],
        [*printed, *(row(*values) for values in rows)],
        ["Sliding window, weighted by tokens; texts and tokenizers differ between the two parts."],
    )


def _mean(scores: statistics.Scores, spec: str = ".3f") -> str:
    """The mean; nothing where a data set has no scores."""
    try:
        return statistics.mean(scores).text(spec)
    except ValueError:
        return MISSING


def _ranks(columns: Mapping[str, statistics.Scores]) -> dict[str, str]:
    """Mean rank of each method; nothing where their runs do not pair up."""
    try:
        return {name: rank.text(".2f") for name, rank in statistics.mean_ranks(columns).items()}
    except ValueError:
        return {}


def _best(runs: Sequence[Run]) -> str:
    if not runs:
        return MISSING
    best = np.array([run.measures["reward_best"] for run in runs])
    text = statistics.mean(best[None]).text(".4f")
    deviations = [np.std(run.best.split_scores) for run in runs if run.best is not None]
    return f"{text} ± {np.mean(deviations):.3f}" if deviations else text
