"""Checkpoints survive odd names and damaged files, and say in one line what does not fit."""

import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from env.base import UsageError
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs import checkpoint, steps
from etpo_jax.runs.checkpoint import Checkpoints, misfit, read_role

REPLAY = {"reward": np.arange(4.0)}
ROLE = ("critic", "trunk")


def state(value, width=3):
    weights = jnp.full((2, width), value, jnp.float32)
    return {"critic": {"trunk": {"params": {"w": weights}}}, "step": jnp.zeros((), jnp.int32)}


def save(path, *numbers):
    with jax.set_mesh(build_mesh()), Checkpoints(path, 5) as checkpoints:
        for number in numbers:
            checkpoints.save(number, state(float(number)), REPLAY, {"update": number})
    return path


def restore(path, wanted=None, replay=REPLAY):
    with jax.set_mesh(build_mesh()), Checkpoints(path, 5) as checkpoints:
        update, found, replay, host = checkpoints.restore_newest(wanted or state(0.0), replay)
    assert host == {"update": update}
    np.testing.assert_array_equal(replay["reward"], REPLAY["reward"])
    np.testing.assert_array_equal(found["critic"]["trunk"]["params"]["w"], np.full((2, 3), update))
    return update


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints 1 and 2, not to be changed."""
    return save(tmp_path_factory.mktemp("two") / "checkpoints", 1, 2)


@pytest.fixture
def copied(two, tmp_path):
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


@pytest.mark.parametrize(
    "name",
    [
        "[x]",
        "a\\b",
        "a*",
        "?",
        "gs:",
        "new\nline",
        "-lead",
        "{a,b}%20$HOME",
        "日",
        "\udcff",
        "x" * 250,
    ],
    ids=ascii,
)
def test_a_folder_of_any_name_is_written_and_read(tmp_path, name):
    path = tmp_path / name / "checkpoints"
    save(path, 1)
    assert restore(path) == 1
    role = read_role(path / "1", ROLE, build_mesh())
    np.testing.assert_array_equal(role["params"]["w"], np.full((2, 3), 1.0))
    assert os.listdir(tmp_path) == [name]


def test_what_was_written_is_read_back_once(tmp_path, monkeypatch):
    loads = []
    load = Checkpoints._load
    monkeypatch.setattr(
        Checkpoints,
        "_load",
        lambda self, update, wanted: loads.append(update) or load(self, update, wanted),
    )
    save(tmp_path / "a", 1, 2)
    assert loads == [1]
    # As if orbax looked for its parts in vain, which a folder named [x] once made it do.
    monkeypatch.setattr(steps, "is_literal", lambda folder: True)
    with pytest.raises(UsageError, match=r"checkpoint .*\[x\]/1 cannot be read"):
        save(tmp_path / "[x]", 1)


def parts():
    """Files of a checkpoint that hold something which is needed to read it."""
    return [
        "_CHECKPOINT_METADATA",
        "state/_METADATA",
        "state/manifest.ocdbt",
        "replay/_METADATA",
        "replay/manifest.ocdbt",
        "host/data.json",
        "state/d/*",
        "replay/d/*",
    ]


@pytest.mark.parametrize("part", parts())
@pytest.mark.parametrize("harm", ["cut", "empty", "lost"])
def test_the_newest_checkpoint_that_is_whole_is_used(copied, caplog, part, harm):
    (file, *_) = sorted((copied / "2").glob(part), key=lambda path: -path.stat().st_size)
    if harm == "lost":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if harm == "cut" else 0)
    step, role = steps.read_newest(copied, None, lambda path: read_role(path, ROLE, build_mesh()))
    np.testing.assert_array_equal(role["params"]["w"], np.full((2, 3), float(step)))
    with caplog.at_level(logging.WARNING):
        assert restore(copied) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1].startswith(f"checkpoint {copied / '2'} is damaged (")
    assert lines[-1].endswith("it is kept as damaged_2")
    assert sorted(os.listdir(copied)) == ["1", "damaged_2"]
    save(copied, 2)
    assert restore(copied) == 2


def test_a_cut_array_is_found_when_it_is_read(tmp_path):
    large = {"w": jax.random.normal(jax.random.key(0), (100_000,))}
    with jax.set_mesh(build_mesh()), Checkpoints(tmp_path, 5) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, large, REPLAY, {})
    file = max((tmp_path / "2").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size - 1000)
    assert steps.committed_steps(tmp_path) == [1, 2]
    with jax.set_mesh(build_mesh()), Checkpoints(tmp_path, 5) as checkpoints:
        assert checkpoints.restore_newest(large, REPLAY)[0] == 1


def test_what_a_kill_leaves_is_no_checkpoint(copied):
    (copied / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (copied / "4").mkdir()
    (copied / "5").write_text("a file")
    (copied / "notes").mkdir()
    assert steps.committed_steps(copied) == [1, 2]
    assert steps.choose(copied, None) == 2
    assert restore(copied) == 2


def test_without_a_whole_checkpoint_the_run_does_not_begin_again_by_itself(copied):
    for file in copied.glob("*/state/d/*"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=r"no other one is left, --overwrite starts the run anew"):
        restore(copied)
    assert sorted(os.listdir(copied)) == ["damaged_1", "damaged_2"]


def test_a_wanted_checkpoint_that_is_damaged_is_named(copied):
    shutil.rmtree(copied / "2" / "replay")
    with pytest.raises(UsageError, match=r"^--checkpoint=2: .*/2: 'replay' is missing$"):
        steps.choose(copied, 2)
    with pytest.raises(UsageError, match=r"^--checkpoint=3: .* holds 1$"):
        steps.choose(copied, 3)
    shutil.rmtree(copied / "1")
    with pytest.raises(
        UsageError, match="has no checkpoint yet; 2 is damaged: 'replay' is missing"
    ):
        steps.choose(copied, None)


def test_what_does_not_fit_is_one_short_line(two):
    tilted = state(0.0)
    tilted["critic"]["trunk"]["tilt"] = jnp.zeros(5)
    adapted = {"critic": {"trunk": {"lora": {"w": jnp.zeros(2)}}}, "step": jnp.zeros((), jnp.int32)}
    begin = rf"^checkpoint {two}/2 does not fit this run: in its "
    end = "; it was made with other settings or by another version$"
    with pytest.raises(UsageError, match=f"{begin}state, critic/trunk/tilt is missing{end}"):
        restore(two, tilted)
    with pytest.raises(
        UsageError, match=rf"{begin}state, critic/trunk/lora/w is missing \(and 1 more\){end}"
    ):
        restore(two, adapted)
    with pytest.raises(
        UsageError,
        match=rf"{begin}state, critic/trunk/params/w has shape \[2, 3\] and must have \[2, 4\]; ",
    ):
        restore(two, state(0.0, width=4))
    with pytest.raises(
        UsageError, match=rf"{begin}replay, reward has shape \[4\] and must have \[5\]{end}"
    ):
        restore(two, replay={"reward": np.zeros(5)})
    assert restore(two) == 2


def test_trees_that_fit():
    assert misfit({"a": [np.zeros(2)]}, {"a": [jnp.ones(2)]}) == ""
    assert (
        misfit({"a": np.zeros(2), "b": np.zeros(1)}, {"a": np.zeros(2)}) == "b is not of this run"
    )


def test_a_role_that_is_not_there_is_named(two):
    with pytest.raises(UsageError, match=r"has no policy$"):
        read_role(two / "2", ("policy",), build_mesh())


@pytest.mark.parametrize(
    ("text", "number"), [("Failed: [os_error_code='27']", 27), ("OUT_OF_RANGE", 0)]
)
def test_errors_of_the_system_are_found_behind_others(text, number):
    error = RuntimeError("save failed")
    error.__cause__ = ValueError(text)
    assert checkpoint.system_error(error) == number
    error.__cause__ = OSError(28, "No space left on device")
    assert checkpoint.system_error(error) == 28


_TOO_LARGE = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from env import command_line
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs.checkpoint import Checkpoints
def main():
    path = Path(sys.argv[0]).parent / "checkpoints"
    with jax.set_mesh(build_mesh()), Checkpoints(path, 2) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)}, {"a": np.zeros(1)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        checkpoints.save(2, {"w": jnp.zeros(3)}, {"a": np.random.rand(10_000)}, {})
command_line.run(main)
"""


def test_a_write_that_fails_in_the_background_is_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_TOO_LARGE)
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: [Errno 27] File too large")
    assert str(tmp_path / "checkpoints") in line
    assert (done.returncode, resource.getrlimit(resource.RLIMIT_FSIZE)[0]) == (
        2,
        resource.RLIM_INFINITY,
    )
    assert steps.committed_steps(tmp_path / "checkpoints") == [1]


@pytest.mark.parametrize(
    ("text", "is_shown"), [("no space left [tensorstore_spec='{}']", False), ("another", True)]
)
def test_errors_of_writes_that_nobody_awaits_are_not_logged(text, is_shown):
    error = ValueError(text)  # as of a future: it has no traceback
    exc_info = (ValueError, error, None)
    record = logging.LogRecord("asyncio", 40, "base_events.py", 1, "never retrieved", (), exc_info)
    assert checkpoint._is_not_raised(record) == is_shown
