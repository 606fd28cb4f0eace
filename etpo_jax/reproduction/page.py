"""Pages of a grid, with the tables and figures that its runs allow."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from etpo_jax.reproduction import curves, figures, html_sections, measures, published, tables
from etpo_jax.reproduction.curves import Curves
from etpo_jax.reproduction.grid import Outcome
from etpo_jax.reproduction.measures import Results, Run
from etpo_jax.runs import files, html_page

_METHODS = ("reflection", "ppo_kl", "etpo")
_ABLATIONS = ("etpo_disc", "etpo_1step", "etpo")
TABLES = {"2": _METHODS, "3": ("etpo",), "4": _ABLATIONS, "5": ("etpo",)}
"""Number of a table of the paper to the algorithms that it compares."""
FIGURES = {"1": ("etpo",), "3": _METHODS, "4": _METHODS, "10": _ABLATIONS}
"""Number of a figure of the paper to the algorithms that it compares."""
REPORT = "report.md"
HTML_REPORT = "report.html"

_FIGURE_1 = "Figure 1: evolution of the best program"

# Algorithm to the paper's columns in front of its own.
_TABLE_2 = {
    "reflection_gpt4": (published.GPT_4,),
    "reflection": (published.REFLECTION,),
    "ppo_kl": (published.PPO_KL,),
    "etpo": (published.ETPO,),
}
_TABLE_4 = {
    "etpo_disc": (published.DISCOUNTED,),
    "etpo_1step": (published.ONE_STEP,),
    "etpo": (published.ETPO,),
}
_TABLE_5 = {"etpo": (published.CAAFE, published.ETPO)}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a grid: commit of the code, environment steps of a run, command."""

    commit: str | None
    num_env_steps: int
    command: str


def write(
    folder: Path,
    results: Results,
    *,
    origin: Origin,
    failures: Sequence[Outcome],
    wanted_tables: Sequence[str],
    wanted_figures: Sequence[str],
    perplexities: Sequence[tuple[str, str, float, float]],
) -> tuple[Path, Path]:
    """Writes tables, figures and the row of each run, and the two pages that show them.

    Args:
      folder: folder for all files.
      results: the finished runs, at least one.
      origin: code and command that made the runs.
      failures: cells without a finished run.
      wanted_tables, wanted_figures: keys of `TABLES` and `FIGURES`.
      perplexities: rows of Table 3, as `tables.perplexity` takes them.

    Returns:
      The paths of `report.md` and `report.html`.
    """
    _write_rows(folder, results)
    made = _tables(results, wanted_tables)
    if "3" in wanted_tables:
        made.append(tables.perplexity(perplexities))
    for table in made:
        table.write(folder)
    charts = _charts(results, wanted_figures)
    for name, (title, drawn) in charts.items():
        figures.save(figures.draw(drawn, title), folder, name)
    evolution = _best_run(results) if "1" in wanted_figures else None
    if evolution is not None:
        figures.save(figures.evolution(evolution), folder, "figure1")
    left_out = [f"Failed and left out: {failure.cell}: {failure.error}" for failure in failures]
    markdown = _markdown(origin, left_out, made, charts, evolution)
    files.replace(folder / REPORT, markdown)
    sections = [
        *(f"<p>{html.escape(line)}</p>" for line in left_out),
        html_sections.cards(charts.values()),
        *map(html_sections.table, made),
        html_sections.evolution(evolution) if evolution is not None else "",
        html_sections.runs(results, folder),
        html_sections.command(origin.command, origin.commit),
    ]
    datasets = list(dict.fromkeys(name for rows in results.values() for name in rows))
    subtitle = (
        f"{', '.join(results)} on {', '.join(datasets)}; {origin.num_env_steps} environment steps "
        "a run"
    )
    page = html_page.page("Reproduction", subtitle, sections, style=html_sections.STYLE)
    files.replace(folder / HTML_REPORT, page)
    return folder / REPORT, folder / HTML_REPORT


def _write_rows(folder: Path, results: Results) -> None:
    """Writes `runs.csv`, a row for each run."""
    rows = [
        {"algorithm": name} | measures.row(run)
        for name, by_dataset in results.items()
        for runs in by_dataset.values()
        for run in runs
    ]
    files.replace(folder / "runs.csv", pd.DataFrame(rows).to_csv(index=False))


def _markdown(
    origin: Origin,
    left_out: Sequence[str],
    made: Sequence[tables.Table],
    charts: Mapping[str, tuple[str, Curves]],
    evolution: Run | None,
) -> str:
    """The content of `report.md`."""
    parts = [
        "# Reproduction",
        f"Commit `{origin.commit or 'unknown'}`, {origin.num_env_steps} environment steps a run, "
        f"made by\n\n    {origin.command}",
        *left_out,
        *(table.markdown() for table in made),
        *(f"### {title}\n\n![{title}]({name}.svg)" for name, (title, _) in charts.items()),
    ]
    if evolution is not None:
        parts.append(f"### {_FIGURE_1}\n\n![{_FIGURE_1}](figure1.svg)")
        parts.append(figures.evolution_text(evolution))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _tables(results: Results, wanted: Sequence[str]) -> list[tables.Table]:
    """Our own tables, and the paper's without Table 3."""
    made = [tables.methods(results), tables.by_dataset(results)]
    made += [
        tables.pairs(results, name)
        for name in ("reflection", "ppo_kl")
        if name in results and len(results) > 1
    ]
    return made + _published(results, wanted)


def _published(results: Results, wanted: Sequence[str]) -> list[tables.Table]:
    """Tables 2, 4 and 5; algorithms that the paper does not compare get a column in Table 2."""
    others: dict[str, tuple[str, ...]] = {
        name: () for name in results if name not in _TABLE_2 and name not in _TABLE_4
    }
    return [
        tables.published_scores(f"table{number}", title, results, columns)
        for number, title, columns in (
            ("2", "Table 2: best reward within the given steps", {**_TABLE_2, **others}),
            ("4", "Table 4: ablations", _TABLE_4),
            ("5", "Table 5: against CAAFE", _TABLE_5),
        )
        if number in wanted
    ]


def _charts(results: Results, wanted: Sequence[str]) -> dict[str, tuple[str, Curves]]:
    """Title and curves of each figure that the runs allow, by the name of its files."""
    ablations = {name: results[name] for name in _ABLATIONS if name in results}
    methods = {name: rows for name, rows in results.items() if name not in _ABLATIONS[:2]}
    return {
        f"figure{number}": (title, make(chosen))
        for number, title, chosen, make in (
            ("3", "Figure 3: best reward against environment steps", methods, curves.best_reward),
            ("4", "Figure 4: average reward while learning", methods, curves.average_reward),
            ("10", "Figure 10: ablations", ablations, curves.best_reward),
        )
        if number in wanted and measures.common_datasets(chosen)
    }


def _best_run(results: Results) -> Run:
    """The best run of ETPO, or else of the first algorithm, on the first data set."""
    by_dataset = results["etpo"] if "etpo" in results else next(iter(results.values()))
    runs = next(iter(by_dataset.values()))
    return max(runs, key=lambda run: run.measures["reward_best"])
