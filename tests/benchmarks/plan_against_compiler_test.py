"""The rows of the table are runs, and the committed table is what the plan says today."""

import pathlib
import re

import pytest

from benchmarks import plan_against_compiler as benchmark
from env.base import UsageError

RESULTS = pathlib.Path(benchmark.__file__).parent / "results" / "plan_against_compiler.md"


@pytest.mark.parametrize("setting", benchmark.SETTINGS, ids=lambda setting: setting.name)
def test_the_plan_is_within_a_tenth_of_the_compiler(setting):
    config = benchmark.configuration(setting)
    assert (config.finetune.adapters is None) == setting.is_full
    planned = benchmark.estimated(config, setting.program, "gpu")
    start = benchmark.row(*benchmark.titles(setting), 1, planned).split(" | 0.00 | ")[0]
    (found,) = re.findall(
        rf"^{re.escape(start)} \| ([\d.]+) \| ([\d.]+) \|", RESULTS.read_text(), re.MULTILINE
    )
    compiled, written = map(float, found)
    assert planned / 2**30 == pytest.approx(written, abs=0.006)
    assert planned / 2**30 == pytest.approx(compiled, rel=0.1)


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="--rows=other: there is no such row"):
        list(benchmark.rows("h200", ["other"]))
