"""The progress line on terminals and in files, and the summary at the end."""

import io
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from env.base import UsageError
from etpo_jax.runs import progress
from etpo_jax.runs.directory import Best, RunDirectory


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _row(env_step: int, **changes: Any) -> dict[str, Any]:
    return {
        "env_step": env_step,
        "update": env_step // 16,
        "reward_mean": 0.41234,
        "reward_best": 0.931,
        "runnable_rate": 0.625,
        "tokens_per_s": 1234.5,
        **changes,
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Shows rows at given seconds after the start, and returns what was written."""

    def show(stream: io.StringIO, rows: list[tuple[float, dict[str, Any]]], **options: Any) -> str:
        now = 100.0
        with progress.Progress(480, stream=stream, **options) as bar:
            monkeypatch.setattr(bar._bar, "_time", lambda: now)
            bar._bar.start_t = bar._bar.last_print_t = now
            for seconds, row in rows:
                now = 100.0 + seconds
                bar.update(row)
        return stream.getvalue()

    return show


def test_a_line_says_how_far_how_good_and_how_long(run: Callable[..., str]) -> None:
    text = run(io.StringIO(), [(10, _row(240))])
    assert text == (
        "step 240/480  50%  update  15  reward mean  0.412  best  0.931  runnable  62%"
        "   1,234 tokens/s  ETA 00:10\n"
    )


def test_missing_figures_are_dashes_of_the_same_width(run: Callable[..., str]) -> None:
    given = run(io.StringIO(), [(10, _row(16))])
    row = _row(16, reward_best=None, runnable_rate=math.nan, tokens_per_s=None)
    missing = run(io.StringIO(), [(10, row)])
    assert missing.index("ETA") == given.index("ETA")
    assert "best      -" in missing


def test_a_file_gets_one_plain_line_per_update(run: Callable[..., str]) -> None:
    lines = run(io.StringIO(), [(float(s), _row(16 * s)) for s in range(1, 9)]).splitlines()
    assert [line.split("/")[0] for line in lines] == [f"step {16 * s}" for s in range(1, 9)]
    assert all(line.isprintable() for line in lines)


def test_a_terminal_gets_one_bar_that_is_drawn_again(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    size = os.terminal_size((100, 24))
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: size)
    text = run(_Terminal(), [(float(second), _row(16 * second)) for second in range(1, 4)])
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = text.removesuffix("\n").split("\r")[1:]
    assert [line.split("|")[0].strip() for line in drawn] == ["0%", "3%", "7%", "10%", "10%"]
    assert max(map(len, drawn)) <= 99
    assert "48/480 steps, ETA 00:27, update   3, reward mean  0.412" in drawn[-1]


def test_a_bar_stands_before_the_first_update_and_lines_do_not(run: Callable[..., str]) -> None:
    assert run(io.StringIO(), []) == ""
    assert "| 0/480 steps, ETA ?" in run(_Terminal(), [])


def test_a_bar_says_what_is_done() -> None:
    for stream in (io.StringIO(), _Terminal()):
        with progress.Progress(480, stream=stream) as bar:
            bar.note("compiling step")
        assert ("ETA ?, compiling step" in stream.getvalue()) == stream.isatty()


def test_the_remaining_time_follows_the_newest_updates(run: Callable[..., str]) -> None:
    # 100 s for the first 16 steps, compilation included: all that is known.
    slow = [(100.0, _row(16))]
    assert run(io.StringIO(), slow).endswith("ETA 48:20\n")
    fast = [(100.0 + i, _row(16 + 8 * i)) for i in range(1, 51)]
    # The remaining 64 steps at 8 a second.
    assert run(io.StringIO(), slow + fast[:50]).endswith("ETA 00:08\n")


def test_a_resumed_run_does_not_count_the_steps_of_its_past(run: Callable[..., str]) -> None:
    assert run(io.StringIO(), [(10, _row(240))], env_step=230).endswith("ETA 04:00\n")


def _make_run(path: Path, *, is_finished: bool, num_updates: int = 5) -> None:
    config = {"algorithm": "etpo", "dataset": "toy", "seed": 3, "num_env_steps": 10}
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        rewards = [-1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 0.25]
        rows = [
            {"env_step": i + 1, "reward": reward, "error": "ValueError: x" if reward < 0 else ""}
            for i, reward in enumerate(rewards)
        ]
        run.append_episodes(rows)
        for env_step in (2, 4, 6, 8, 10)[-num_updates:]:
            run.append_metrics(_row(env_step))
        run.write_best(Best(0.75, (0.7, 0.8), 9, "toy", 3, "a", "print('best')\n"))
        if is_finished:
            run.mark_finished({})


def test_summary_of_a_finished_run(tmp_path: Path) -> None:
    path = tmp_path / "a run"
    _make_run(path, is_finished=True)
    assert "Predict other rows" not in progress.summary(path)
    (path / "preparation.json").write_text("{}")
    assert "best_code.py' --predict NEW.csv --output=predictions.csv\n" in progress.summary(path)
    (path / "curve.png").write_bytes(b"")
    text = progress.summary(path)
    assert text.startswith("Finished 10 environment steps: etpo on toy, seed 3\n")
    assert "best reward     0.7500 at environment step 9 of 10\n" in text
    assert "mean reward     -0.250 in the first fifth, 0.500 in the last\n" in text
    assert f"curve           {path}/curve.png\n" in text
    assert "a larger --num_env_steps" in text
    # Only what is there.
    assert "report.html" not in text
    command = next(line for line in text.splitlines() if line.startswith("Run the best"))
    words = shlex.split(command.split(":", 1)[1])
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True)
    assert done.stdout == "best\n"


def test_summary_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    _make_run(tmp_path, is_finished=False)
    text = progress.summary(tmp_path)
    assert text.startswith("Stopped after 10 of 10 environment steps")
    assert "the same command again" in text


def test_a_few_updates_have_no_fifths(tmp_path: Path) -> None:
    _make_run(tmp_path, is_finished=True, num_updates=4)
    assert "mean reward" not in progress.summary(tmp_path)


def test_summary_of_a_run_that_did_nothing(tmp_path: Path) -> None:
    config = {"algorithm": "etpo", "dataset": "toy", "seed": 3, "num_env_steps": 10}
    RunDirectory.open(tmp_path, config, may_differ=frozenset(), overwrite=False).close()
    text = progress.summary(tmp_path)
    assert text.startswith("Stopped after 0 of 10 environment steps")
    assert "best reward     none: no program has run" in text


def test_summary_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        progress.summary(tmp_path)


def test_a_narrow_terminal_keeps_a_bar(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    last = run(_Terminal(), [(10, _row(240))]).split("\r")[-1].rstrip()
    assert len(last) <= 80
    assert len(last.split("|")[1]) >= 10
    assert "update  15" in last
    assert "tokens/s" not in last
