"""The page of a grid: which tables and figures are made of which runs, and `report.md`."""

from collections.abc import Sequence
from pathlib import Path

from etpo_jax import durable
from etpo_jax.reproduction import figures, measures, published, tables
from etpo_jax.reproduction.grid import Outcome
from etpo_jax.reproduction.measures import Results, Run

_METHODS = ("reflection", "ppo_kl", "etpo")
_ABLATIONS = ("etpo_disc", "etpo_1step", "etpo")
TABLES = {"2": _METHODS, "3": ("etpo",), "4": _ABLATIONS, "5": ("etpo",)}
"""Number of a table of the paper to the algorithms that it is made of."""
FIGURES = {"1": ("etpo",), "3": _METHODS, "4": _METHODS, "10": _ABLATIONS}
"""Number of a figure of the paper to the algorithms that it is made of."""
REPORT = "report.md"

# Algorithm to the paper's columns that stand before ours.
_TABLE_2 = {
    "reflection": (published.GPT_4, published.REFLECTION),
    "ppo_kl": (published.PPO_KL,),
    "etpo": (published.ETPO,),
}
_TABLE_4 = {
    "etpo_disc": (published.DISCOUNTED,),
    "etpo_1step": (published.ONE_STEP,),
    "etpo": (published.ETPO,),
}
_TABLE_5 = {"etpo": (published.CAAFE, published.ETPO)}


def write(
    folder: Path,
    results: Results,
    *,
    introduction: str,
    failures: Sequence[Outcome],
    wanted_tables: Sequence[str],
    wanted_figures: Sequence[str],
    perplexities: Sequence[tuple[str, str, float, float]],
) -> Path:
    """Writes tables and figures, and the page that shows them.

    Args:
      folder: where everything goes.
      results: the finished runs, at least one.
      introduction: Markdown below the title: what was run.
      failures: cells without a run.
      wanted_tables, wanted_figures: keys of `TABLES` and `FIGURES`.
      perplexities: rows of Table 3, see `tables.perplexity`.

    Returns:
      The path of the page.
    """
    made = [tables.methods(results), tables.by_dataset(results)]
    made += [
        tables.pairs(results, name)
        for name in ("reflection", "ppo_kl")
        if name in results and len(results) > 1
    ]
    made += _published(results, wanted_tables)
    if "3" in wanted_tables:
        made.append(tables.perplexity(perplexities))
    parts = ["# Reproduction", introduction]
    parts += [f"Failed and left out: {failure.cell}: {failure.error}" for failure in failures]
    for table in made:
        table.write(folder)
        parts.append(table.markdown())
    for name, title in _draw(folder, results, wanted_figures):
        parts.append(f"### {title}\n\n![{title}]({name}.svg)")
    if "1" in wanted_figures:
        parts.append(figures.evolution_text(_best_run(results)))
    durable.replace(folder / REPORT, "\n\n".join(part.strip() for part in parts) + "\n")
    return folder / REPORT


def _published(results: Results, wanted: Sequence[str]) -> list[tables.Table]:
    """Tables 2, 4 and 5; algorithms that the paper does not have get a column in Table 2."""
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


def _draw(folder: Path, results: Results, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Draws the figures for which there are runs; their names and titles."""
    ablations = {name: results[name] for name in _ABLATIONS if name in results}
    methods = {name: rows for name, rows in results.items() if name not in _ABLATIONS[:2]}
    made = []
    for number, title, chosen, draw in (
        ("3", "Figure 3: best reward against environment steps", methods, figures.best_reward),
        ("4", "Figure 4: average reward while learning", methods, figures.average_reward),
        ("10", "Figure 10: ablations", ablations, figures.best_reward),
    ):
        if number in wanted and measures.common_datasets(chosen):
            figures.save(draw(chosen, title), folder, f"figure{number}")
            made.append((f"figure{number}", title))
    if "1" in wanted:
        figures.save(figures.evolution(_best_run(results)), folder, "figure1")
        made.append(("figure1", "Figure 1: evolution of the best program"))
    return made


def _best_run(results: Results) -> Run:
    """Of ETPO if it was run, the run with the highest reward on the first data set."""
    by_dataset = results["etpo"] if "etpo" in results else next(iter(results.values()))
    runs = next(iter(by_dataset.values()))
    return max(runs, key=lambda run: run.measures["reward_best"])
