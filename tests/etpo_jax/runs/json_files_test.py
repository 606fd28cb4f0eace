"""Objects and rows survive the way to the disk and back; torn rows do not come back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from env.base import UsageError
from etpo_jax.runs import json_files


def test_floats_come_back_bit_for_bit_and_keys_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"z": 0.1 + 0.2, "a": 5e-324, "m": 1.7976931348623157e308, "b": -0.0}
    json_files.append_rows(path, [row])
    (back,) = json_files.read_rows(path)
    assert list(back.items()) == list(row.items())
    assert math.copysign(1.0, back["b"]) == -1.0


def test_numpy_scalars_are_numbers() -> None:
    given = {"a": np.float32(0.1), "b": np.int64(3), "c": np.array(2.5), "d": np.bool_(True)}
    assert json_files.to_json(given) == {"a": float(np.float32(0.1)), "b": 3, "c": 2.5, "d": True}


def test_nan_and_infinities_are_texts_that_float_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    json_files.append_rows(path, [{"a": math.nan, "b": [math.inf, np.float32(-math.inf)]}])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"a": "NaN", "b": ["Infinity", "-Infinity"]}
    assert math.isnan(float(row["a"]))
    assert [float(value) for value in row["b"]] == [math.inf, -math.inf]


def test_texts_of_any_kind_stay_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = 'a\nb\u2028c\r\x00 "quoted" \udc80 ▁'
    json_files.append_rows(path, [{"action": text}, {"action": ""}])
    assert len(path.read_bytes().splitlines()) == 2
    assert [row["action"] for row in json_files.read_rows(path)] == [text, ""]


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="object is no JSON value"):
        json_files.to_json({"a": object()})
    with pytest.raises(TypeError, match="ndarray"):
        json_files.to_json(np.zeros(2))


@pytest.mark.parametrize(
    "tail", [b'{"n": 3', b'{"n": 3}', b"\0\0\0\0\n", b"3\n", b'{"n": \xff}\n'], ids=repr
)
def test_torn_rows_are_not_read_and_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    json_files.append_rows(path, [{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert [row["n"] for row in json_files.read_rows(path)] == [1, 2]
    assert json_files.cut_rows(path, lambda row: True) == {"n": 2}
    assert path.read_bytes() == whole


def test_cut_keeps_rows_up_to_the_first_unwanted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    json_files.append_rows(path, [{"n": n} for n in range(5)])
    assert json_files.cut_rows(path, lambda row: row["n"] <= 2) == {"n": 2}
    assert [row["n"] for row in json_files.read_rows(path)] == [0, 1, 2]
    assert json_files.cut_rows(path, lambda row: False) is None
    assert path.read_bytes() == b""


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert list(json_files.read_rows(path)) == []
    assert json_files.cut_rows(path, lambda row: True) is None
    assert not path.exists()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"], ids=repr)
def test_a_file_without_an_object_is_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        json_files.read(path)
