"""A run directory is made, resumed, refused and cut back, and survives a kill at any moment."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags, logging

from env.base import UsageError
from etpo_jax.runs import directory, files, versions
from etpo_jax.runs.directory import Best, FollowedRun, RunDirectory

_ROOT = Path(__file__).resolve().parents[3]
_CONFIG: dict[str, Any] = {
    "dataset": "balance_scale",
    "beta": 0.1,
    "seed": 0,
    "strict_data": None,
    "target": None,
    "num_env_steps": 480,
}
_MAY_DIFFER = frozenset({"num_env_steps"})
_BEST = Best(
    reward=0.93125,
    split_scores=(0.9, 0.9625),
    env_step=7,
    dataset="balance_scale",
    seed=0,
    action="model = 1",
    program="def build_model(x_train, y_train):\n    model = 1\n    return model\n",
)


def _open(path: Path, *, overwrite: bool = False, **changes: Any) -> RunDirectory:
    return RunDirectory.open(path, _CONFIG | changes, may_differ=_MAY_DIFFER, overwrite=overwrite)


def _files(path: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, with its content."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


@pytest.fixture(autouse=True)
def _same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    # Asking git is slow, and the answer changes while people work.
    monkeypatch.setattr(versions, "current", lambda: {"python": "3", "git_commit": "abc"})


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: seen.append(text % args))
    return seen


# Start and resume ---------------------------------------------------------------------------------


def test_a_new_folder_holds_configuration_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with _open(path) as run:
        run.record(isolation="landlock")
    assert json.loads((path / "config.json").read_text()) == _CONFIG
    setup = json.loads((path / "versions.json").read_text())
    assert setup["git_commit"] == "abc"
    assert setup["isolation"] == "landlock"
    assert setup["command"].startswith("python ")


def test_current_versions_name_the_libraries_and_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    found = versions.current()
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", found["git_commit"] or "0" * 40)
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(str(n) for n in sys.version_info[:3])


def test_flags_file_gives_the_configuration_back(tmp_path: Path) -> None:
    config = {
        "name": "a b  c # d // 'e' \"f\" = --g",
        "none": None,
        "on": True,
        "off": False,
        "rate": 1e-05,
        "third": 1 / 3,
        "count": -3,
        "empty": "",
        "items": ["a", "b,c", 'say "x"'],
        "no_items": [],
    }
    RunDirectory.open(tmp_path, config, may_differ=frozenset(), overwrite=False).close()
    registry = flags.FlagValues()
    for name in ("name", "none"):
        flags.DEFINE_string(name, None, "", flag_values=registry)
    flags.DEFINE_string("empty", "full", "", flag_values=registry)
    flags.DEFINE_bool("on", False, "", flag_values=registry)
    flags.DEFINE_bool("off", True, "", flag_values=registry)
    flags.DEFINE_float("rate", 0.5, "", flag_values=registry)
    flags.DEFINE_float("third", 0.5, "", flag_values=registry)
    flags.DEFINE_integer("count", 0, "", flag_values=registry)
    flags.DEFINE_list("items", [], "", flag_values=registry)
    flags.DEFINE_list("no_items", ["x"], "", flag_values=registry)
    assert registry(["program", f"--flagfile={tmp_path}/flags.cfg"]) == ["program"]
    assert {name: registry[name].value for name in config} == config


@pytest.mark.parametrize("value", ["a\nb", "trailing ", "\t"], ids=repr)
def test_a_value_that_a_flag_file_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"--dataset=.*flags\.cfg"):
        _open(tmp_path / "run", dataset=value)
    assert not (tmp_path / "run").exists()


def test_the_same_configuration_resumes(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.append_metrics({"update": 1, "env_step": 16})
    before = _files(tmp_path)
    _open(tmp_path).close()
    assert _files(tmp_path) == before


def test_allowed_differences_are_stored(tmp_path: Path) -> None:
    _open(tmp_path).close()
    _open(tmp_path, num_env_steps=960).close()
    assert json.loads((tmp_path / "config.json").read_text())["num_env_steps"] == 960
    assert "--num_env_steps=960\n" in (tmp_path / "flags.cfg").read_text()


def test_a_run_that_has_not_begun_takes_another_configuration(tmp_path: Path) -> None:
    with _open(tmp_path, dataset="balanse_scale") as run:
        run.checkpoints_path.mkdir()
        run.write_preparation({"checksum": "of another table"})
        (tmp_path / "tensorboard").mkdir()
    with _open(tmp_path) as run:
        run.write_preparation({"checksum": "of this table"})
    assert json.loads((tmp_path / "config.json").read_text())["dataset"] == "balance_scale"
    assert "--dataset=balance_scale\n" in (tmp_path / "flags.cfg").read_text()


def test_other_differences_are_named_with_both_values_and_refused(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.append_episodes([{"env_step": 1}])
    before = _files(tmp_path)
    with pytest.raises(UsageError) as caught:
        _open(tmp_path, beta=0.2, dataset="cmc", num_env_steps=1, brand_new=None)
    text = str(caught.value)
    assert '--dataset was "balance_scale" and is now "cmc"' in text
    assert "--beta was 0.1 and is now 0.2" in text
    assert "--brand_new was not set and is now null" in text
    assert "--overwrite" in text
    assert "num_env_steps" not in text
    assert _files(tmp_path) == before


def test_a_flag_that_is_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.append_metrics({"env_step": 1, "update": 1})

    def reopen(value: int) -> RunDirectory:
        config = _CONFIG | {"younger": value}
        return RunDirectory.open(
            tmp_path, config, may_differ=_MAY_DIFFER, overwrite=False, defaults={"younger": 3}
        )

    with pytest.raises(UsageError, match="--younger was 3 and is now 4"):
        reopen(4)
    reopen(3).close()
    assert files.read_json(tmp_path / "config.json")["younger"] == 3


def test_other_versions_are_named_and_the_old_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    with _open(tmp_path) as run:
        run.record(isolation="landlock")
    for commit in ("def", "ghi"):
        monkeypatch.setattr(
            versions, "current", lambda commit=commit: {"python": "3", "git_commit": commit}
        )
        _open(tmp_path).close()
    assert "git_commit abc -> def" in messages[0]
    assert "python" not in messages[0].split(":")[-1]
    setup = json.loads((tmp_path / "versions.json").read_text())
    assert setup["git_commit"] == "ghi"
    assert [old["git_commit"] for old in setup["earlier"]] == ["abc", "def"]
    assert setup["earlier"][0]["isolation"] == "landlock"


@pytest.mark.parametrize(("layout", "age"), [(1, "an earlier"), (99, "another")])
def test_a_run_of_another_version_is_refused(tmp_path: Path, layout: int, age: str) -> None:
    _open(tmp_path).close()
    assert directory.open_for_reading(tmp_path) == _CONFIG
    setup = files.read_json(tmp_path / "versions.json")
    files.write_json(tmp_path / "versions.json", setup | {"run_directory_format": layout})
    message = rf"{tmp_path} was written by {age} version \(layout {layout}, .*: "
    with pytest.raises(UsageError, match=message + "--overwrite starts it anew, or finish it"):
        _open(tmp_path)
    with pytest.raises(UsageError, match=message + "read it with the version that wrote it"):
        directory.open_for_reading(tmp_path)
    _open(tmp_path, overwrite=True).close()
    assert directory.open_for_reading(tmp_path) == _CONFIG


def test_only_run_directories_are_opened_for_reading(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        directory.open_for_reading(tmp_path)
    _open(tmp_path).close()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"lost its config\.json"):
        directory.open_for_reading(tmp_path)


def test_other_hosts_write_nothing(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.mark_finished({"env_step": 1})
    before = _files(tmp_path)
    with FollowedRun(tmp_path) as follower:
        follower.cut_back(update=-1, env_step=-1, best=None)
        follower.record(isolation="none")
        follower.append_metrics({"update": 1})
        follower.append_episodes([{"env_step": 1}])
        follower.write_best(_BEST)
        assert follower.finished == {"env_step": 1}
    assert _files(tmp_path) == before


@pytest.mark.parametrize("content", [None, b"{", b""], ids=["lost", "torn", "empty"])
def test_a_run_without_its_configuration_is_not_guessed(
    tmp_path: Path, content: bytes | None
) -> None:
    with _open(tmp_path) as run:
        run.append_metrics({"update": 1, "env_step": 16})
    if content is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json.*--overwrite"):
        _open(tmp_path)
    assert (tmp_path / "metrics.jsonl").exists()
    _open(tmp_path, overwrite=True).close()
    assert not (tmp_path / "metrics.jsonl").exists()


# Overwrite and foreign folders --------------------------------------------------------------------


def _fill(path: Path) -> None:
    with _open(path) as run:
        run.append_metrics({"update": 1, "env_step": 16})
        run.append_episodes([{"env_step": 1}])
        run.write_best(_BEST)
        run.mark_finished({"env_step": 16})
        (path / "tensorboard").mkdir()
        (run.checkpoints_path / "1" / "state").mkdir(parents=True)
        (run.checkpoints_path / "1" / "state" / "array").write_bytes(b"123")
    (path / "curve.png").write_bytes(b"picture")
    (path / "report.html").write_bytes(b"page")


def test_overwrite_starts_anew_and_spares_what_no_run_writes(tmp_path: Path) -> None:
    run_path, fresh_path = tmp_path / "run", tmp_path / "fresh"
    _fill(run_path)
    (run_path / "notes.txt").write_text("mine")
    _open(run_path, overwrite=True, beta=0.2).close()
    _open(fresh_path, beta=0.2).close()
    assert _files(run_path) == {**_files(fresh_path), "notes.txt": b"mine"}
    assert not (run_path / "checkpoints").exists()


def test_overwrite_does_not_follow_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "large_disk"
    elsewhere.mkdir()
    (elsewhere / "data").write_text("keep")
    _open(tmp_path / "run").close()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    _open(tmp_path / "run", overwrite=True).close()
    assert (elsewhere / "data").read_text() == "keep"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["config.json", "versions.json", "metrics.jsonl", ".git", "checkpoints"]
)
def test_a_folder_of_something_else_is_refused_and_untouched(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match="holds no run"):
        _open(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path) == [name]


def test_a_file_or_an_impossible_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/run")):
        with pytest.raises(UsageError, match=f"{path} cannot be created"):
            _open(path)


# One writer ---------------------------------------------------------------------------------------

_HOLD = """
import sys, time
from etpo_jax.runs.directory import RunDirectory
run = RunDirectory.open(sys.argv[1], {"seed": 0}, may_differ=frozenset(), overwrite=False)
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    arguments = {"may_differ": frozenset[str](), "overwrite": True}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(UsageError, match=rf"in use by another process \(pid {holder.pid}"):
                RunDirectory.open(tmp_path, {"seed": 0}, **arguments)
            assert (tmp_path / "config.json").exists()
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    RunDirectory.open(tmp_path, {"seed": 0}, **arguments).close()


def test_the_lock_also_holds_within_a_process_until_close(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        with pytest.raises(UsageError, match="in use"):
            _open(tmp_path)
        run.close()
        _open(tmp_path).close()


def test_a_refused_start_leaves_no_lock(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.append_episodes([{"env_step": 1}])
    with pytest.raises(UsageError, match="--beta"):
        _open(tmp_path, beta=0.2)
    _open(tmp_path).close()


# Going back to a checkpoint -----------------------------------------------------------------------


def _log(run: RunDirectory, updates: range) -> None:
    for update in updates:
        first = 2 * update - 1
        run.append_episodes([{"env_step": first + i, "reward": 0.5} for i in range(2)])
        run.append_metrics({"env_step": 2 * update, "update": update, "reward_mean": update / 7})


def _contents(path: Path) -> tuple[list[int], list[int]]:
    return (
        [row["update"] for row in files.read_rows(path / "metrics.jsonl")],
        [row["env_step"] for row in files.read_rows(path / "episodes.jsonl")],
    )


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with _open(whole) as run:
        _log(run, range(1, 6))
        run.write_best(_BEST)
    later = Best(**{**_BEST.to_json(), "reward": 0.99, "program": "later", "split_scores": ()})
    with _open(broken) as run:
        _log(run, range(1, 5))
        run.write_best(later)
        run.mark_finished({"env_step": 8})
    with open(broken / "metrics.jsonl", "ab") as file:
        file.write(b'{"env_step": 10, "upd')
    with _open(broken) as run:
        assert run.finished == {"env_step": 8}
        for _ in range(2):
            run.cut_back(update=3, env_step=6, best=_BEST)
            assert _contents(broken) == ([1, 2, 3], [1, 2, 3, 4, 5, 6])
            assert run.finished is None
        _log(run, range(4, 6))
    for name in ("metrics.jsonl", "episodes.jsonl", "best.json", "best_code.py"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert _contents(broken) == _contents(whole)


def test_without_a_checkpoint_everything_goes(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.append_metrics({"update": 0, "env_step": 0})
        _log(run, range(1, 3))
        run.write_best(_BEST)
        run.cut_back(update=-1, env_step=-1, best=None)
        assert _contents(tmp_path) == ([], [])
        assert not {"best.json", "best_code.py"} & set(os.listdir(tmp_path))


def test_rows_that_a_checkpoint_should_have_are_missed_aloud(
    tmp_path: Path, messages: list[str]
) -> None:
    with _open(tmp_path) as run:
        _log(run, range(1, 3))
        run.cut_back(update=2, env_step=4, best=None)
        assert messages == []
        run.cut_back(update=5, env_step=10, best=None)
    assert len(messages) == 2
    assert "metrics.jsonl ends at update 2 but the checkpoint was saved at 5" in messages[0]
    assert "episodes.jsonl ends at env_step 4 but the checkpoint was saved at 10" in messages[1]


def test_rows_need_what_cutting_back_reads(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        with pytest.raises(ValueError, match="'update'"):
            run.append_metrics({"env_step": 1})
        with pytest.raises(ValueError, match="'env_step'"):
            run.append_episodes([{"env_step": 1}, {"env_step": 1.5}])
        assert _contents(tmp_path) == ([], [])


# The best program ---------------------------------------------------------------------------------


def test_best_code_runs_and_says_where_it_comes_from(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        run.write_best(_BEST)
    text = (tmp_path / "best_code.py").read_text()
    header = text.split("\n\n")[0]
    assert all(line.startswith("# ") for line in header.splitlines())
    for part in ("0.931250", "0.9000 0.9625", "balance_scale", "step 7", "seed 0"):
        assert part in header
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["build_model"](None, None) == 1
    back = json.loads((tmp_path / "best.json").read_text())
    assert Best.from_json(back) == _BEST


def test_a_data_set_name_cannot_leave_the_comment() -> None:
    best = Best(**{**_BEST.to_json(), "dataset": "csv:a\nimport os", "split_scores": ()})
    assert "\nimport os" not in best.code()


def test_a_run_whose_table_has_changed_does_not_go_on(tmp_path: Path) -> None:
    preparation = {"checksum": "a", "file": {"path": "churn.csv"}}
    with _open(tmp_path) as run:
        run.write_preparation(preparation)
        run.write_preparation({**preparation, "notes": ["of a later version"]})
        with pytest.raises(UsageError, match=r"table churn.csv has changed .* --overwrite"):
            run.write_preparation({**preparation, "checksum": "b"})
        assert "later version" in (tmp_path / "preparation.json").read_text()
    with _open(tmp_path, overwrite=True) as run:
        run.write_preparation({**preparation, "checksum": "b"})


def test_a_preparation_without_a_checksum_is_replaced(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        (tmp_path / "preparation.json").write_text('{"notes": []}')
        run.write_preparation({"checksum": "a"})
    assert json.loads((tmp_path / "preparation.json").read_text()) == {"checksum": "a"}


# Kills and full disks -----------------------------------------------------------------------------

# Kills a process at its n-th change of the file system, for every n, and resumes what is left. A
# write is killed half-way. Prints one line per kill.
_KILLS = r"""
import json, os, shutil, signal, sys
from pathlib import Path
from env.base import UsageError
from etpo_jax.runs import files, versions
from etpo_jax.runs.directory import Best, RunDirectory

versions.current = lambda: {"git_commit": "abc"}
os.fsync = lambda descriptor: None  # a kill loses nothing that was written, so save the time
root, life = Path(sys.argv[1]), sys.argv[2]
checkpoint = root / "run" / "checkpoints" / "committed"

def start(seed, overwrite):
    return RunDirectory.open(
        root / "run", {"seed": seed}, may_differ=frozenset(), overwrite=overwrite
    )

def train(seed=0, overwrite=False):
    with start(seed, overwrite) as run:
        update, best = -1, None
        if checkpoint.exists():
            update, best = json.loads(checkpoint.read_text())
        run.cut_back(
            update=update, env_step=update, best=Best.from_json(best) if best else None
        )
        check(run.path, max(update, 0), best)
        for update in range(max(update, 0) + 1, 3):
            best = Best(update / 10, (0.5,), update, "toy", seed, "a", f"x = {update}\n")
            run.append_episodes([{"env_step": update}])
            run.write_best(best)
            run.append_metrics({"update": update, "loss": 1.0})
            if update == 1:
                run.checkpoints_path.mkdir(exist_ok=True)
                files.replace(checkpoint, json.dumps([update, best.to_json()]))
        run.mark_finished({"updates": 2})

def check(path, update, best):
    expected = list(range(1, update + 1))
    assert [row["update"] for row in files.read_rows(path / "metrics.jsonl")] == expected
    assert [row["env_step"] for row in files.read_rows(path / "episodes.jsonl")] == expected
    assert (path / "best_code.py").exists() == (path / "best.json").exists() == bool(best)
    if best:
        assert best["program"] in (path / "best_code.py").read_text()
        assert json.loads((path / "best.json").read_text()) == best

def killed_at(count):
    left = count
    def counting(function, is_write):
        def change(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                if is_write:
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return change
    for name in "open write fsync replace rename unlink rmdir mkdir ftruncate".split():
        setattr(os, name, counting(getattr(os, name), name == "write"))

for count in range(1000):
    shutil.rmtree(root / "run", ignore_errors=True)
    if life == "overwrite":
        train(seed=1)
    child = os.fork()
    if not child:
        killed_at(count)
        train(overwrite=life == "overwrite")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        train()
    except UsageError as error:
        # Only the run that was to be overwritten, still whole, may be in the way.
        assert life == "overwrite" and "--seed was 1" in str(error), error
        with start(1, False) as run:
            assert run.finished
            check(run.path, 2, json.loads((run.path / "best.json").read_text()))
        train(overwrite=True)
    names = set(os.listdir(root / "run"))
    assert not [name for name in names if "unfinished" in name or "given_up" in name], names
    assert json.loads((root / "run" / "config.json").read_text()) == {"seed": 0}
    print(status, flush=True)
    if status == 0:
        break
"""


@pytest.mark.parametrize("life", ["train", "overwrite"])
def test_a_run_killed_at_any_change_of_a_file_resumes(tmp_path: Path, life: str) -> None:
    command = [sys.executable, "-c", _KILLS, str(tmp_path), life]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    statuses = [int(status) for status in done.stdout.split()]
    assert statuses[-1] == 0
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert len(statuses) > 50


def test_a_full_disk_is_one_line_for_the_user(tmp_path: Path) -> None:
    program = f"""
import os
from env import command_line
from etpo_jax.runs.directory import RunDirectory
def main():
    run = RunDirectory.open({str(tmp_path)!r}, {{}}, may_differ=frozenset(), overwrite=False)
    os.symlink("/dev/full", run.path / "metrics.jsonl")
    run.append_metrics({{"update": 1}})
command_line.run(main)
"""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, a device that is always full")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no space left on the disk")
    assert f"{tmp_path}/metrics.jsonl" in line


def test_jax_stays_out(tmp_path: Path) -> None:
    # Reports and summaries are made on machines and at moments where no device may be held.
    program = (
        "import sys, etpo_jax.runs.report, etpo_jax.runs.progress; print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
