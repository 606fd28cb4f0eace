"""Statistics of a run's files against plain loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from etpo_jax.runs.run_log import (
    CommonError,
    Episodes,
    common_errors,
    error_kind,
    running_mean,
    smoothing_window,
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("", ""),
        ("ValueError: bad\nmore", "ValueError"),
        ("sklearn.exceptions.NotFittedError: x", "sklearn.exceptions.NotFittedError"),
        ("timeout: more than 10 s", "timeout"),
        ("MemoryError", "MemoryError"),
        ("do not use GridSearchCV", "do not use GridSearchCV"),
        ("took more than 10 s: was stopped", "took more than 10 s"),
        ("x" * 20 + " " + "y" * 30, "x" * 20 + " " + "y" * 11),
    ],
)
def test_kinds_of_errors(error: str, kind: str) -> None:
    assert error_kind(error) == kind


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9, 40])
def test_running_mean_equals_a_loop_over_known_neighbours(window: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=17)
    values[[0, 5, 6, 16]] = np.nan
    before = window - 1 - (window - 1) // 2
    after = (window - 1) // 2
    expected = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - before) : i + after + 1] if not math.isnan(v)]
        expected.append(sum(near) / len(near) if near else math.nan)
    np.testing.assert_allclose(running_mean(values, window), expected, rtol=1e-12)


def test_errors_that_differ_in_numbers_are_one(tmp_path: Path) -> None:
    errors = ["", "ValueError: no [1. , 2.5] in x", "TypeError: x", "ValueError: no [7] in x"]
    errors += ["ValueError: no [1 ... 3] in y"]
    rows = [
        {"env_step": step, "error": error, "action": "a" * (9 - step)}
        for step, error in enumerate(errors, 1)
    ]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = common_errors(tmp_path, 2)
    assert found == [
        CommonError("ValueError: no [7] in x", 2, "a" * 5, 4),
        CommonError("TypeError: x", 1, "a" * 6, 3),
    ]


def test_smoothing_is_light_and_leaves_short_curves_alone() -> None:
    windows = [smoothing_window(n) for n in (1, 7, 8, 30, 400)]
    assert windows == [1, 1, 3, 3, 41]


def test_fifths() -> None:
    rewards = np.arange(12.0)
    episodes = Episodes(np.arange(1, 13), rewards, ("",) * 12)
    assert episodes.fifths() == (0.5, 10.5)
    assert Episodes(np.arange(1, 5), rewards[:4], ("",) * 4).fifths() is None
