import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import search
from env.base import UsageError

TEXT = """
seed = 3
num_settings = 4
num_env_steps = 16
criterion_betas = [0.0, 0.2]

[ranges]
support_threshold = {log = [0.01, 0.1]}

[methods.a]
flags = ["--algorithm=reflection"]
ranges = {temperature = {log = [0.5, 2]}}

[methods.b]
flags = ["--algorithm=reflection"]
ranges = {max_steps = {choice = [1, 5]}}

[methods.plain]
flags = ["--algorithm=reflection"]
searched = false

[[stage]]
name = "draws"
methods = ["a", "b"]
seeds = [100, 101]
datasets = ["toy"]

[[stage]]
name = "again"
methods = ["a", "b"]
keep = 2
seeds = [102]
datasets = ["toy"]

[[stage]]
name = "evaluation"
methods = ["a", "b", "plain"]
keep = 1
seeds = [0]
datasets = ["toy"]

[[stage]]
name = "frontier"
methods = ["a"]
keep = 1
seeds = [0]
datasets = ["toy"]
vary = {support_threshold = [0.05, 0.5]}
num_samples = 4
"""


@pytest.fixture
def protocol(tmp_path):
    path = tmp_path / "protocol.toml"
    path.write_text(TEXT)
    return search.Protocol.read(path)


def rows_of(protocol, cells):
    """Rows with the settings as drawn from (method, number, seed, reward, KL)."""
    made = [
        {"algorithm": method, "setting": number, "dataset": "toy", "seed": seed}
        | dict.fromkeys(protocol.setting_names, "")
        | protocol.draws(method)[number]
        | {"reward_fifth_5": reward, "kl_fifth_5": kl}
        for method, number, seed, reward, kl in cells
    ]
    return pd.DataFrame(made)


def test_draws_fill_their_range_and_are_shared_by_the_methods(protocol):
    a, b = protocol.draws("a"), protocol.draws("b")
    assert a == protocol.draws("a")
    assert [s["support_threshold"] for s in a] == [s["support_threshold"] for s in b]
    # One value in each quarter of the logarithmic range.
    quarters = np.floor(4 * np.log10(sorted(float(s["support_threshold"]) / 0.01 for s in a)))
    assert quarters.tolist() == [0, 1, 2, 3]
    assert sorted(s["max_steps"] for s in b) == ["1", "1", "5", "5"]
    assert protocol.draws("plain") == [{}]
    assert protocol.setting_names == ["support_threshold", "temperature", "max_steps"]


def test_stages_keep_the_best_by_the_criterion(protocol):
    draws, again, evaluation, frontier = protocol.stages
    empty = rows_of(protocol, [("a", 0, 7, 0, 0)])[:0]
    assert len(search.missing(protocol, draws, empty)) == 2 * 4 * 2
    # J at the mean beta0 of 0.1: 0.5, 0.6, 0.4 and, with one run missing, 0.9.
    cells = [("a", n, s, r, kl) for s in (100, 101) for n, r, kl in ((0, 0.5, 0), (1, 0.8, 2))]
    cells += [("a", 2, s, 0.4, 0.0) for s in (100, 101)] + [("a", 3, 100, 0.9, 0.0)]
    rows = rows_of(protocol, cells)
    assert protocol.candidates(draws, "a", rows) == [0, 1, 2, 3]
    assert protocol.candidates(again, "a", rows) == [1, 0]
    # The third seed turns the order round; the evaluation's own seed does not count.
    rows = rows_of(protocol, [*cells, ("a", 1, 102, 0.0, 0.0), ("a", 0, 102, 0.5, 0.0)])
    assert protocol.candidates(evaluation, "a", rows) == [0]
    rows = rows_of(
        protocol, [*cells, ("a", 1, 102, 0.0, 0), ("a", 0, 102, 0.5, 0), ("a", 0, 0, -1, 9)]
    )
    assert protocol.candidates(frontier, "a", rows) == [0]
    # It has run already; only its other values of beta are missing.
    found = search.missing(protocol, frontier, rows).values()
    assert [run.setting["support_threshold"] for run in found] == ["0.05", "0.5"]
    assert {run.setting["temperature"] for run in found} == {protocol.draws("a")[0]["temperature"]}
    left = search.missing(protocol, evaluation, rows).values()
    assert [run.method for run in left if run.method != "b"] == ["plain"]


def test_a_search_runs_every_stage_and_goes_on_from_its_rows(tmp_path):
    protocol = tmp_path / "protocol.toml"
    text = TEXT.replace("num_settings = 4", "num_settings = 2").replace('"a", "b"', '"a"')
    text = text.replace("[100, 101]", "[100]").replace(', "plain"', "")
    again, frontier = text.index('[[stage]]\nname = "again"'), text.rindex("[[stage]]")
    protocol.write_text(text[:again] + text[frontier:])
    command = [
        *(sys.executable, "-m", "benchmarks.search", f"--protocol={protocol}"),
        *(f"--output={tmp_path / 'out'}", "--jobs=2"),
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    file = tmp_path / "out" / "runs.csv"
    text = file.read_text()
    rows = pd.read_csv(file)
    # Two settings drawn, two values of the flag for the better one.
    assert rows.groupby("seed").size().to_dict() == {0: 2, 100: 2}
    assert np.isfinite(rows.reward_fifth_5).all()
    # The stage with fresh samples has measured its policies.
    assert np.isfinite(rows.final_kl).tolist() == [False, False, True, True]
    assert not list((tmp_path / "out" / "runs").glob("*/*/*"))
    without_last = "".join(text.splitlines(keepends=True)[:-1])
    file.write_text(without_last)
    again = subprocess.run([*command, "--keep_runs"], capture_output=True, text=True, check=False)
    assert "stage frontier: 1 runs" in again.stdout
    assert len(pd.read_csv(file)) == len(rows)
    # A run that was killed between its last step and its measurement is measured by the next call.
    (measurement,) = (tmp_path / "out" / "runs").rglob(search.FINAL_FILE)
    measurement.unlink()
    file.write_text(without_last)
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert np.isfinite(pd.read_csv(file).final_kl).tolist() == [False, False, True, True]


def test_what_is_no_protocol_is_refused_in_one_line(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("seed = 1")
    with pytest.raises(UsageError, match="is no protocol"):
        search.Protocol.read(path)
    path.write_text(TEXT.replace('["a"]', '["c"]'))
    with pytest.raises(UsageError, match="stage frontier names c"):
        search.Protocol.read(path)
    path.write_text(TEXT.replace("log = [0.01, 0.1]", "linear = [0, 1]"))
    with pytest.raises(UsageError, match="range of support_threshold"):
        search.Protocol.read(path).draws("a")
