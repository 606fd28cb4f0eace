"""Writes are whole or do not happen, torn rows are not read, and errors name the file."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from env.base import UsageError
from etpo_jax.runs import files

_ROOT = Path(__file__).resolve().parents[3]
_NEEDS_DEV_FULL = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full"
)

# Child processes: a limit on file sizes stops a write half-way, as a disk that fills up does.
_LIMITED = """
import resource, sys
from pathlib import Path
from etpo_jax.runs import files
path = Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    getattr(files, sys.argv[1])(path, b"x" * 2000)
except OSError as error:
    print(error)
"""


def _limited(function: str, path: Path) -> str:
    command = [sys.executable, "-c", _LIMITED, function, str(path)]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout


def test_replace_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, "one\n")
    files.replace(path, b"two\n")
    assert path.read_bytes() == b"two\n"
    assert os.listdir(tmp_path) == ["file"]


def test_replace_leaves_an_equal_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, "one\n")
    before = path.stat().st_ino
    files.replace(path, "one\n")
    assert path.stat().st_ino == before


def test_replace_writes_lone_surrogates_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    files.replace(path, "text = '\udc80'\n")
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
    files.append(path, b"one\n")
    assert str(path) in _limited("append", path)
    assert path.read_bytes() == b"one\n"


@_NEEDS_DEV_FULL
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        files.append(path, b"one\n")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)


def test_a_killed_replace_leaves_old_or_new_and_a_file_known_as_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = f"""
import os
from pathlib import Path
from etpo_jax.runs import files
os.fsync = lambda descriptor: os.kill(os.getpid(), {int(signal.SIGKILL)})
files.replace(Path({str(path)!r}), "new")
"""
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", program], cwd=_ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (unfinished,) = set(os.listdir(tmp_path)) - {"file"}
    assert files.is_unfinished(unfinished)
    assert not files.is_unfinished("file")


# JSON ---------------------------------------------------------------------------------------------


def test_floats_come_back_bit_for_bit_and_keys_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"z": 0.1 + 0.2, "a": 5e-324, "m": 1.7976931348623157e308, "b": -0.0}
    files.append_rows(path, [row])
    (back,) = files.read_rows(path)
    assert list(back.items()) == list(row.items())
    assert math.copysign(1.0, back["b"]) == -1.0


def test_numpy_scalars_are_numbers() -> None:
    given = {"a": np.float32(0.1), "b": np.int64(3), "c": np.array(2.5), "d": np.bool_(True)}
    assert files.to_json(given) == {"a": float(np.float32(0.1)), "b": 3, "c": 2.5, "d": True}


def test_nan_and_infinities_are_texts_that_float_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_rows(path, [{"a": math.nan, "b": [math.inf, np.float32(-math.inf)]}])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"a": "NaN", "b": ["Infinity", "-Infinity"]}
    assert math.isnan(float(row["a"]))
    assert [float(value) for value in row["b"]] == [math.inf, -math.inf]


def test_numbers_come_back_from_json() -> None:
    values = [3, 0.5, "NaN", "-Infinity", np.float32(0.5), "text", None, [1.0], {}]
    read = [files.to_number(files.to_json(value)) for value in values]
    assert read[:2] == [3.0, 0.5]
    assert math.isnan(read[2] or 0.0)
    assert read[3:] == [-math.inf, 0.5, None, None, None, None]


def test_texts_of_any_kind_stay_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = 'a\nb\u2028c\r\x00 "quoted" \udc80 ▁'
    files.append_rows(path, [{"action": text}, {"action": ""}])
    assert len(path.read_bytes().splitlines()) == 2
    assert [row["action"] for row in files.read_rows(path)] == [text, ""]


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        files.to_json({"a": object()})
    with pytest.raises(TypeError, match="ndarray"):
        files.to_json(np.zeros(2))


@pytest.mark.parametrize(
    "tail", [b'{"n": 3', b'{"n": 3}', b"\0\0\0\0\n", b"3\n", b'{"n": \xff}\n'], ids=repr
)
def test_torn_rows_are_not_read_and_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_rows(path, [{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert [row["n"] for row in files.read_rows(path)] == [1, 2]
    assert files.cut_rows(path, lambda row: True) == {"n": 2}
    assert path.read_bytes() == whole


def test_cut_keeps_rows_up_to_the_first_unwanted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_rows(path, [{"n": n} for n in range(5)])
    assert files.cut_rows(path, lambda row: row["n"] <= 2) == {"n": 2}
    assert [row["n"] for row in files.read_rows(path)] == [0, 1, 2]
    assert files.cut_rows(path, lambda row: False) is None
    assert path.read_bytes() == b""


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert list(files.read_rows(path)) == []
    assert files.cut_rows(path, lambda row: True) is None
    assert not path.exists()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"], ids=repr)
def test_a_file_without_an_object_is_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        files.read_json(path)


def test_bytes_in_words() -> None:
    texts = [files.bytes_text(n) for n in (0, 1023, 1024, 1536, 3 * 2**40, 2**51)]
    assert texts == ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "3.0 TiB", "2048.0 TiB"]
