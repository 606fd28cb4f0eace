"""Tables and figures from runs that are written here, so that every figure is known."""

import csv
import json
import re
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from etpo_jax.reproduction import curves, figures, measures, page, published, tables
from etpo_jax.reproduction.grid import Cell, Outcome
from etpo_jax.reproduction.page import Origin
from etpo_jax.runs.directory import Best

STEPS = 40


def make_run(folder, algorithm, dataset, seed, level):
    """Half failures, then programs of reward `level`, the last a little better."""
    rewards = np.concatenate([np.full(20, -1.0), np.full(19, level), [level + 0.01]])
    path = folder / algorithm / dataset / str(seed)
    path.mkdir(parents=True)
    with open(path / "episodes.jsonl", "w") as file:
        for step, reward in enumerate(rewards, start=1):
            row = {
                "env_step": step,
                "reward": reward,
                "error": "ValueError: no" if reward < 0 else "",
                "action": f"x = 1\nmodel = Model({reward:.2f})",
            }
            file.write(json.dumps(row) + "\n")
    with open(path / "metrics.jsonl", "w") as file:
        for update in range(1, 11):
            chosen = rewards[4 * (update - 1) : 4 * update]
            row = {
                "env_step": 4 * update,
                "update": update,
                "reward_mean": chosen.mean(),
                "runnable_rate": float((chosen > -1).mean()),
                "distinct_programs": 10 + update,
                "entropy": 5.0,
                "kl_to_reference": 0.5 * update,
            }
            file.write(json.dumps(row) + "\n")
    best = Best(level + 0.01, (level, level + 0.02), STEPS, dataset, seed, "body", "code")
    (path / "best.json").write_text(json.dumps(best.to_json()))
    for name in ("config.json", "versions.json"):
        (path / name).write_text('{"run_directory_format": 2}')
    return measures.read(Cell(algorithm, dataset, seed), path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    levels = {
        ("etpo", "balance_scale"): (0.8, 0.9, 0.85),
        ("etpo", "tic_tac_toe"): (0.6, 0.7, 0.65),
        ("reflection", "balance_scale"): (0.5, 0.5, 0.5),
        ("reflection", "tic_tac_toe"): (0.4, 0.5, 0.45),
        # A data set that only one algorithm has finished.
        ("etpo", "csv:mine.csv"): (0.1,),
    }
    return [
        make_run(folder, algorithm, dataset.replace(":", "_"), seed, level)
        for (algorithm, dataset), values in levels.items()
        for seed, level in enumerate(values)
    ]


@pytest.fixture(scope="module")
def results(runs):
    return measures.group(runs)


def cells(table, row, column):
    header = list(table.header)
    (found,) = [line for line in table.rows if line[0] == row]
    return found[header.index(column)]


def test_measures_of_a_run_by_hand(runs):
    run = runs[0]
    assert run.measures["reward_fifth_5"] == pytest.approx(0.8 + 0.01 / 8)
    assert run.measures["reward_fifth_1"] == -1.0
    assert run.measures["reward_best"] == pytest.approx(0.81)
    # Entropy, KL and runnable share: the last two of ten updates; distinct: the last one.
    assert run.measures["kl_fifth_5"] == pytest.approx(4.75)
    assert run.measures["distinct_programs"] == 20
    assert run.measures["runnable"] == 1.0
    # Of the last eight programs one is new.
    assert run.measures["repeated"] == 7 / 8
    assert (run.best_until(20), run.best_until(21), run.best_until(40)) == (-1.0, 0.8, 0.81)


def test_steps_to_a_reward():
    reward_t = np.r_[np.zeros(100), np.ones(100)]
    # The mean of 48 reaches 0.7 with 34 ones among them (34 / 48 = 0.708).
    assert measures.steps_to(reward_t, 0.7) == 134
    assert np.isnan(measures.steps_to(reward_t, 1.1))
    assert np.isnan(measures.steps_to(reward_t[-40:], 0.7))


def test_only_what_all_have_run_is_aggregated(results):
    assert measures.common_datasets(results) == ["balance_scale", "tic_tac_toe"]
    table = tables.methods(results)
    assert cells(table, "etpo", "runs") == "6"
    # Means of .8 .9 .85 and .6 .7 .65, + 0.01 / 8.
    text = cells(table, "etpo", "mean reward, last fifth")
    assert text.startswith(f"{0.75 + 0.01 / 8:.3f} [")
    # The middle four of the six.
    assert cells(table, "etpo", "trimmed mean reward") == f"{0.75 + 0.01 / 8:.3f}"
    assert cells(table, "etpo", "mean rank") == "1.00"


def test_runs_that_do_not_pair_up_have_no_rank(runs):
    kept = [run for run in runs if (run.cell.algorithm, run.cell.seed) != ("etpo", 2)]
    table = tables.methods(measures.group(kept))
    assert cells(table, "etpo", "mean rank") == tables.MISSING


def test_by_dataset_has_gaps(results):
    table = tables.by_dataset(results)
    assert cells(table, "tic_tac_toe", "reflection").startswith("0.451 [")
    assert cells(table, "csv_mine.csv", "reflection") == tables.MISSING
    # One run has no interval.
    assert cells(table, "csv_mine.csv", "etpo") == "0.101"


def test_pairs_are_matched_by_seed(results):
    table = tables.pairs(results, "reflection")
    # Differences .3 .4 .35 and .2 .2 .2.
    assert cells(table, "etpo", "best reward").startswith("+0.2")
    assert cells(table, "etpo", "KL to the reference, nats per action") == "+0.000"


def test_published_figures_stand_beside_ours(results):
    table = tables.published_scores(
        "table2",
        "Table 2",
        results,
        {"reflection": [published.GPT_4, published.REFLECTION], "ppo_kl": [published.PPO_KL]},
    )
    assert list(table.header) == [
        "data set",
        "GPT-4 reflection, paper",
        "reflection, paper",
        "reflection, ours",
        "PPO-KL, paper",
    ]
    assert {row[0] for row in table.rows} == {name for rows in results.values() for name in rows}
    assert cells(table, "tic_tac_toe", "PPO-KL, paper") == "0.7356 ± 0.036"
    assert cells(table, "balance_scale", "reflection, ours") == "0.5100 ± 0.010"
    assert cells(table, "csv_mine.csv", "reflection, ours") == tables.MISSING


def test_the_published_averages_are_those_of_the_paper():
    """The typed-in figures add up to the row AVERAGE of Tables 2 and 4."""
    columns = {
        published.GPT_4: 0.7973,
        published.REFLECTION: 0.7965,
        published.PPO_KL: 0.8005,
        published.ETPO: 0.8090,
        published.DISCOUNTED: 0.8015,
        published.ONE_STEP: 0.8037,
    }
    assert len(published.SCORES) == 14
    for name, expected in columns.items():
        mean = np.mean([row[name].mean for row in published.SCORES.values()])
        assert mean == pytest.approx(expected, abs=6e-5), name


def test_markdown_and_csv_hold_the_same_rows(results, tmp_path):
    table = tables.perplexity([("etpo on x, seed 0", "code.txt", 2.0, 2.1)])
    table.write(tmp_path)
    with open(tmp_path / "table3.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[-1] == ["etpo on x, seed 0", "code.txt", "2.0000", "2.1000", "+5.00 %"]
    markdown = (tmp_path / "table3.md").read_text()
    assert all(f"| {' | '.join(row)} |" in markdown for row in rows)


def test_a_figure_is_drawn_and_names_what_it_shows(results, tmp_path):
    drawn = figures.draw(curves.average_reward(results), "Average reward")
    figures.save(drawn, tmp_path, "figure4")
    picture = matplotlib.image.imread(tmp_path / "figure4.png")
    assert picture.shape[:2] == (576, 900)
    assert picture.std() > 0.02
    text = (tmp_path / "figure4.svg").read_text()
    xml.etree.ElementTree.fromstring(text)
    for words in ("etpo", "reflection", "2 data sets", "mean reward of the last 4 actions"):
        assert words in text


def test_the_curves_are_the_runs(results):
    figure = figures.draw(curves.best_reward(results), "Best reward")
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert {line.get_drawstyle() for line in axes.lines if line.get_xydata().size} == {"steps-post"}
    assert lines["reflection"][0].tolist() == [1.0, -1.0]
    # Means of .5 .5 .5 and .4 .5 .45.
    assert lines["reflection"][-1] == pytest.approx([40, 0.475 + 0.01])


def test_evolution_shows_what_changed(results):
    text = figures.evolution_text(results["etpo"]["tic_tac_toe"][1])
    assert "Environment step 21, reward 0.7000" in text
    assert "Environment step 40, reward 0.7100" in text
    assert "- model = Model(0.70)\n+ model = Model(0.71)" in text
    assert "  x = 1\n" in text


def test_the_page_shows_every_table_and_figure_and_names_what_failed(results, tmp_path):
    failure = Outcome(Cell("poad", "pc1", 3), "exit code 2, error: no such table")
    path, html_path = page.write(
        tmp_path,
        results,
        origin=Origin("abc", 40, "python -m x --y"),
        failures=[failure],
        wanted_tables=["2", "3"],
        wanted_figures=["1", "3"],
        perplexities=[("etpo on x, seed 0", "code.txt", 2.0, 2.1)],
    )
    text = path.read_text()
    assert "Commit `abc`, 40 environment steps a run" in text
    assert "    python -m x --y" in text
    assert "Failed and left out: poad on pc1, seed 3: exit code 2, error: no such table" in text
    for title in ("Methods over 2", "Table 2", "Table 3", "Differences to reflection", "Figure 3"):
        assert f"### {title}" in text
    assert "Table 4" not in text
    names = {"methods", "datasets", "against_reflection", "table2", "table3", "runs"}
    assert {file.stem for file in tmp_path.glob("*.csv")} == names
    assert {file.stem for file in tmp_path.glob("*.svg")} == {"figure1", "figure3"}
    for name in ("figure1", "figure3"):
        assert f"]({name}.svg)" in text
    assert "```diff\n+ x = 1" in text
    rows = pd.read_csv(tmp_path / "runs.csv").set_index(["algorithm", "dataset", "seed"])
    assert len(rows) == 13
    row = rows.loc[("etpo", "balance_scale", 0)]
    assert row["reward_fifth_5"] == pytest.approx(0.8 + 0.01 / 8, abs=1e-4)
    assert row["repeated"] == 7 / 8
    assert np.isnan(row["steps_to_0.7"])

    shown = html_path.read_text()
    assert "http" not in shown.replace("http://www.w3.org", "")
    assert "poad on pc1, seed 3: exit code 2, error: no such table" in shown
    for words in ("<td>etpo</td>", "Table 3", "Figure 3", "All 13 runs", "python -m x --y", "abc"):
        assert words in shown, words
    assert '<span class="added">+ model = Model(0.91)</span>' in shown
    assert shown.count("fill-opacity: 0.15") == 2
    assert len(re.findall("<table>", shown)) == shown.count("</table>") == 6


def test_a_grid_without_the_methods_of_a_table_still_makes_it(runs, tmp_path):
    results = measures.group([run for run in runs if run.cell.algorithm == "reflection"])
    page.write(
        tmp_path,
        results,
        origin=Origin(None, 40, ""),
        failures=[],
        wanted_tables=list(page.TABLES),
        wanted_figures=["4", "10"],
        perplexities=[],
    )
    assert {file.stem for file in tmp_path.glob("*.svg")} == {"figure4"}
    assert "ours" not in (tmp_path / "table5.csv").read_text()
