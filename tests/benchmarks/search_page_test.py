import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import frontiers, search, search_page

TEXT = """
seed = 3
num_settings = 2
num_env_steps = 320
criterion_betas = [0.05, 0.15]
ranges = {beta = {choice = [0.1]}, top_k = {choice = [1, 2]}}
methods = {a = {flags = []}, b = {flags = []}, plain = {flags = [], searched = false}}

[[stage]]
name = "draws"
methods = ["a", "b"]
seeds = [100]
datasets = ["x"]

[[stage]]
name = "evaluation"
methods = ["a", "b", "plain"]
keep = 1
seeds = [0, 1]
datasets = ["x", "y"]

[[stage]]
name = "frontier"
methods = ["a", "b"]
keep = 1
seeds = [0, 1]
datasets = ["x", "y"]
vary = {beta = [0.05, 0.2, 0.4]}
"""


def outcome(run, cell):
    """Reward 0.2 + 0.1 KL, and 0.3 more for method a; a KL of 0.1 / beta, a little by seed."""
    beta = float(run.setting.get("beta", "inf"))
    kl = 0.1 / beta + 0.01 * cell.seed
    reward = 0.2 + 0.1 * kl + 0.3 * (run.method == "a") + 0.05 * cell.seed
    reward += 0.001 * int(run.setting.get("top_k", 0))
    fifths = {f"reward_fifth_{k}": reward for k in range(1, 6)}
    fifths |= {f"kl_fifth_{k}": kl for k in range(1, 6)}
    return fifths | {
        **{"steps_to_0.7": 100.0 if run.method == "a" else np.nan, "reward_best": 0.9},
        **{"distinct_programs": 50, "repeated": 0.25, "seconds": 30.0, "final_reward": reward},
        **{"final_kl": kl, "final_kl_full": kl, "final_repeated": 0.1, "final_first_distinct": 60},
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "protocol.toml").write_text(TEXT)
    protocol = search.Protocol.read(folder / "protocol.toml")
    for stage in protocol.stages:
        rows = search.read_rows(folder / "runs.csv", protocol)
        new = [
            {"algorithm": run.method, "setting": run.number, "dataset": cell.dataset}
            | {"seed": cell.seed, **run.setting, **outcome(run, cell)}
            for cell, run in search.missing(protocol, stage, rows).items()
        ]
        pd.concat([rows, pd.DataFrame(new)]).to_csv(folder / "runs.csv", index=False)
    return folder, protocol, search.read_rows(folder / "runs.csv", protocol)


def cells(table, row):
    (found,) = [line for line in table.rows if line[0] == row]
    return dict(zip(table.header[1:], found[1:], strict=True))


def test_progress_counts_every_stage(study):
    _, protocol, rows = study
    table = search_page.progress(protocol, rows)
    assert [line[-1] for line in table.rows] == ["4 of 4", "12 of 12", "24 of 24"]
    table = search_page.progress(protocol, rows[rows.seed == 100])
    assert [line[-1] for line in table.rows] == ["4 of 4", "0 of 12", "0 of 24"]
    table = search_page.progress(protocol, rows.drop(rows.index[0]))
    assert table.rows[1][-1].endswith("of the best so far")


def test_the_search_names_the_better_setting_first(study):
    _, protocol, rows = study
    table = search_page.searched(protocol, "a", rows)
    top_k = table.header.index("top_k")
    assert [line[top_k] for line in table.rows] == ["2", "1"]


def test_methods_and_flags_over_all_settings_of_the_search(study):
    _, protocol, rows = study
    drawn = search_page.draws(protocol, rows)
    assert cells(search_page.across(protocol, drawn), "a less b")["reward"] == "+0.300"
    flags = search_page.contrasts(
        protocol, drawn[drawn.algorithm == "a"].replace({"top_k": ""}, "1")
    )
    assert flags.rows[0][:4] == ["a", "top_k", "2 less 1", "+0.001"]


def test_the_change_since_an_earlier_study_is_of_the_runs_that_both_have(study):
    _, protocol, rows = study
    shift = {"a": 0.2, "b": 0.0}
    earlier = rows[rows.seed == 100].iloc[::-1]
    earlier = earlier.assign(
        reward_fifth_5=earlier.reward_fifth_5 - earlier.algorithm.map(shift),
        kl_fifth_5=earlier.kl_fifth_5 + 0.5,
    )
    table = search_page.before(protocol, rows, earlier)
    assert [line[:2] for line in table.rows] == [["a", "2"], ["b", "2"]]
    found = cells(table, "a")
    assert [found[name] for name in ("reward", "KL", "J")] == ["+0.200", "-0.500", "+0.250"]


def test_evaluation_by_hand(study):
    _, protocol, rows = study
    found = search_page.evaluated(protocol, rows)
    table = search_page.methods(found, protocol)
    differences = search_page.differences(found, protocol)
    assert differences.header == ["", "a less b"]
    reward = cells(table, "reward, last fifth")
    # At beta 0.1 a KL of 1.005 on average; the seeds differ by 0.051.
    assert reward["a"].startswith(f"{0.5 + 0.1005 + 0.025 + 0.002:.3f} [")
    assert cells(differences, "reward, last fifth")["a less b"] == "+0.300"
    assert cells(table, "J = reward - 0.15 KL")["plain"].startswith("0.225")
    steps = "steps to a reward of 0.7"
    assert cells(table, steps) == {"a": "100", "b": "320", "plain": "320"}
    assert cells(differences, steps)["a less b"] == "-220"
    assert cells(table, "rank by mean J")["a"] == "1.00"


def test_matched_kl_compares_seed_by_seed_where_both_frontiers_reach(study):
    _, protocol, rows = study
    table = frontiers.matched(frontiers.swept(protocol, rows))
    by_kl = {line[1]: line[2:] for line in table.rows}
    # The sweep reaches from 0.25 to 2 nats.
    assert by_kl["1.5"] == ["4 of 4", "+0.300"]
    assert "3" not in by_kl


def test_paths_read_the_fifths_of_each_run(study):
    _, protocol, rows = study
    found = search_page.evaluated(protocol, rows)
    for k in range(1, 6):
        for method in found:
            kl, reward = 0.4 * k + 0 * found[method].seconds, 0.1 * k + 0.2 * (method == "a")
            found[method] = found[method].assign(
                **{f"kl_fifth_{k}": kl, f"reward_fifth_{k}": reward}
            )
    table = frontiers.matched(frontiers.paths(found))
    by_kl = {line[1]: line[2:] for line in table.rows if line[0] == "a less b"}
    assert by_kl["1"] == by_kl["2"] == ["4 of 4", "+0.200"]
    assert "3" not in by_kl


def test_the_page_is_the_same_each_time_and_needs_no_run_folders(study):
    folder, *_ = study
    pd.DataFrame({"x": [-1, 0.5, 0.9], "y": [-1, 0.4, 0.8]}).to_csv(
        folder / "reference_rewards.csv", index=False
    )
    search_page._flags(["search_page", f"--study={folder}"])
    texts = []
    for _ in range(2):
        assert search_page.main() == 0
        texts.append((folder / "report.md").read_text() + (folder / "frontier.svg").read_text())
    assert texts[0] == texts[1]
    for words in ("](frontier.svg)", "](learning.svg)", "### Search: b", "soft optimum"):
        assert words in texts[0]


def test_the_weighted_programs_are_the_exponential_tilt():
    # Three kinds of program, as often as rho writes them; KL and reward in closed form.
    rewards = [-1.0] * 50 + [0.5] * 40 + [0.9] * 10
    rho, kinds, beta = np.array([0.5, 0.4, 0.1]), np.array([-1.0, 0.5, 0.9]), 0.2
    best = rho * np.exp(kinds / beta)
    best /= best.sum()
    found = frontiers.tilted(rewards, beta)
    assert found.reward == pytest.approx(best @ kinds)
    assert found.kl == pytest.approx(best @ np.log(best / rho))
    assert 10 < found.effective < 50


def test_a_large_beta_is_the_reference_and_a_small_one_the_best_program():
    rewards = [-1.0, 0.2, 0.7, 0.8]
    assert frontiers.tilted(rewards, 1e6).kl == pytest.approx(0.0, abs=1e-6)
    reward, kl, effective = frontiers.tilted(rewards, 1e-3)
    assert (reward, kl, effective) == pytest.approx((0.8, np.log(4), 1.0))


ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "docs" / "studies"
NAMES = ["comparison", "first_tilt", "longer", "toy", "weighted_replay", "wide_search"]


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_that_of_the_committed_rows(tmp_path, name):
    for other in NAMES:  # a page may compare its study with another one
        shutil.copytree(STUDIES / other, tmp_path / other)
    search_page._flags(["search_page", f"--study={tmp_path / name}"])
    assert search_page.main() == 0
    made = (tmp_path / name / "report.md").read_text()
    expected = (STUDIES / name / "report.md").read_text()
    assert made.replace(str(tmp_path), "docs/studies") == expected


def test_every_number_of_the_results_is_in_a_report():
    reports = "".join((STUDIES / name / "report.md").read_text() for name in NAMES)
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    results = text[text.index("## Results") : text.index("## Against")]
    quoted = re.findall(r"[-+]?\d[\d.]* \[[^\]()]*\]", results)
    quoted += re.findall(r"(?<![\d.])\d+\.\d{2,3}(?!\d)", results)
    assert len(quoted) > 20
    assert [number for number in quoted if number not in reports] == []
    readme = " ".join((ROOT / "README.md").read_text().split())
    differences = re.findall(r"by (\S+) \(95 % interval (\S+) to (\S+)\)", readme)
    assert differences
    for value, low, high in (map(float, found) for found in differences):
        assert f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" in reports
