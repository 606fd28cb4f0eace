"""Writes are whole or do not happen, and errors name the file."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etpo_jax.runs import durable

_ROOT = Path(__file__).resolve().parents[3]
_NEEDS_DEV_FULL = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full"
)

# Child processes: a limit on file sizes stops a write half-way, as a disk that fills up does.
_LIMITED = """
import resource, sys
from pathlib import Path
from etpo_jax import durable
path = Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    getattr(durable, sys.argv[1])(path, b"x" * 2000)
except OSError as error:
    print(error)
"""


def _limited(function: str, path: Path) -> str:
    command = [sys.executable, "-c", _LIMITED, function, str(path)]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout


def test_replace_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace(path, "one\n")
    durable.replace(path, b"two\n")
    assert path.read_bytes() == b"two\n"
    assert os.listdir(tmp_path) == ["file"]


def test_replace_leaves_an_equal_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace(path, "one\n")
    before = path.stat().st_ino
    durable.replace(path, "one\n")
    assert path.stat().st_ino == before


def test_replace_writes_lone_surrogates_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    durable.replace(path, "text = '\udc80'\n")
    names: dict[str, str] = {}
    exec(path.read_text("utf-8"), names)
    assert names["text"] == "\udc80"


def test_half_a_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert str(path) in _limited("replace", path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_half_an_append_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    durable.append(path, b"one\n")
    assert str(path) in _limited("append", path)
    assert path.read_bytes() == b"one\n"


@_NEEDS_DEV_FULL
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        durable.append(path, b"one\n")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)


def test_a_killed_replace_leaves_old_or_new_and_a_file_known_as_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = f"""
import os
from pathlib import Path
from etpo_jax import durable
os.fsync = lambda descriptor: os.kill(os.getpid(), {int(signal.SIGKILL)})
durable.replace(Path({str(path)!r}), "new")
"""
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", program], cwd=_ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (unfinished,) = set(os.listdir(tmp_path)) - {"file"}
    assert durable.is_unfinished(unfinished)
    assert not durable.is_unfinished("file")
