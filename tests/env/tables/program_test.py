"""`python -m env.datasets` as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from env.tables import registry
from tests.env.tables import realistic

ROOT = Path(__file__).parents[3]


def run(*arguments, cache_dir):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("KAGGLE_")},
        "ETPO_DATA_CACHE": str(cache_dir),
        "KAGGLE_CONFIG_DIR": str(cache_dir),
    }
    return subprocess.run(
        [sys.executable, "-m", "env.datasets", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def states(output):
    """Name -> its line of the listing."""
    lines = [line.split() for line in output.splitlines()]
    return {words[0]: " ".join(words[1:]) for words in lines if words}


def test_listing_says_what_is_there_and_what_is_needed(cache_dir):
    done = run(cache_dir=cache_dir)
    assert done.returncode == 0
    listed = states(done.stdout)
    assert set(registry.REGISTRY) < set(listed)
    assert listed["balance_scale"] == "125 x 4 x 3 OpenML 11 embedded"
    assert listed["cmc"] == "1473 x 9 x 3 OpenML 23 needs the network, or --data_dir"
    assert listed["kidney_stone"].endswith("needs Kaggle credentials, or --data_dir")


def test_fetch_goes_on_after_a_failure_and_resumes(cache_dir, raw_dir):
    first = run("fetch", "all", f"--data_dir={raw_dir}", cache_dir=cache_dir)
    assert first.returncode == 2
    assert first.stderr.splitlines()[-1] == "error: 1 of 14 tables are missing: airlines"
    assert "error: airlines: 26969 rows instead of the published 539383" in first.stderr
    assert states(first.stdout)["pc1:"] == "fetched"
    # Without the folder: only what is in the cache can be loaded now.
    second = run("fetch", "cmc", "pc1", "tic_tac_toe", cache_dir=cache_dir)
    assert (second.returncode, second.stderr) == (0, "")
    assert states(second.stdout) == {
        "cmc:": "cached",
        "pc1:": "cached",
        "tic_tac_toe:": "embedded",
    }
    listed = states(run("list", cache_dir=cache_dir).stdout)
    assert listed["cmc"].endswith("OpenML 23 cached")
    assert listed["airlines"].endswith("needs the network, or --data_dir")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "error: 'fetch': say list, describe PATH, table, fetch NAME... or fetch all"),
        (["steal", "cmc"], "error: 'steal cmc': say list"),
        (["fetch", "cmcc"], "error: unknown data set 'cmcc'; did you mean cmc?"),
        (["list", "--nosuchflag"], "error: unknown flag --nosuchflag; --help lists the flags"),
    ],
)
def test_bad_commands_are_one_line_and_code_2(arguments, message, cache_dir):
    done = run(*arguments, cache_dir=cache_dir)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_the_documentation_holds_table_1_as_printed(cache_dir):
    printed = run("table", cache_dir=cache_dir).stdout
    assert printed.count("\n") == 16
    assert printed in (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()


def test_help_names_the_flags(cache_dir):
    done = run("--help", cache_dir=cache_dir)
    assert done.returncode == 0
    for flag in ("--cache_dir", "--data_dir", "strict_data"):
        assert flag in done.stdout


def run_in(folder, *arguments, cache_dir):
    """Runs `describe` as a person does who works in that folder."""
    done = subprocess.run(
        [sys.executable, "-m", "env.datasets", "describe", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "ETPO_DATA_CACHE": str(cache_dir), "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    return done.returncode, done.stdout or done.stderr


def test_the_documentation_shows_profiles_as_printed(tmp_path, cache_dir):
    realistic.write(realistic.missing_everywhere, tmp_path)
    realistic.write(realistic.many_rare_classes, tmp_path)
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "five_tables.py")], cwd=tmp_path, check=True
    )
    documented = (ROOT / "docs" / "tables.md").read_text()
    code, printed = run_in(tmp_path, "visits.xlsx", "--target=bought", cache_dir=cache_dir)
    assert code == 0
    assert printed in documented
    code, printed = run_in(tmp_path, "clinic.csv", "--target=target", cache_dir=cache_dir)
    assert code == 0
    assert printed in documented
    target = ("products.csv.gz", "--target=target")
    code, printed = run_in(tmp_path, *target, cache_dir=cache_dir)
    assert code == 2
    assert printed in documented
    merged = run_in(tmp_path, *target, "--rare_classes=merge+stratify", cache_dir=cache_dir)
    assert merged[0] == 0
    assert merged[1] in documented


def test_describe_without_a_target_and_of_a_quantity(tmp_path, cache_dir):
    path = realistic.write(realistic.house_prices, tmp_path)
    code, printed = run_in(tmp_path, path.name, cache_dir=cache_dir)
    assert code == 0
    assert "note: name the column to predict with --target to see classes and rows" in printed
    code, printed = run_in(tmp_path, path.name, "--target=target", cache_dir=cache_dir)
    assert code == 0
    assert "target target: a quantity\nrows: 240 for rewards, 60 held out\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.csv",), "error: describe none.csv: there is no such file\n"),
        (("balance_scale",), "error: describe balance_scale: name the file of a table of your own"),
        (("clinic.csv", "--target=x"), "error: clinic.csv: there is no column 'x'"),
        (
            ("clinic.csv", "--target=target", "--strict_data"),
            "error: clinic.csv: --strict_data refuses what is doubtful: column 'pressure'",
        ),
    ],
)
def test_what_cannot_be_described_is_one_line(tmp_path, cache_dir, arguments, message):
    realistic.write(realistic.missing_everywhere, tmp_path)
    code, printed = run_in(tmp_path, *arguments, cache_dir=cache_dir)
    assert code == 2
    assert printed.startswith(message)
    assert printed.count("\n") == 1
