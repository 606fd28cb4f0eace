"""The note of a run's model: what it tells apart, and when it is written."""

import pytest

from env.base import UsageError
from etpo_jax import base_model, json_files


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not read by training")
    (folder / "model.safetensors").write_bytes(bytes(9 << 20))
    return folder


def overwrite(path, offset, content=b"x"):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def test_only_files_that_training_reads_count(model):
    before = base_model.fingerprint(model)
    assert set(before) == {"config.json", "model.safetensors"}
    (model / "README.md").write_text("other words")
    assert base_model.fingerprint(model) == before


@pytest.mark.parametrize("offset", [0, (9 << 20) - 1], ids=["first byte", "last byte"])
def test_both_ends_of_large_files_count(model, offset):
    before = base_model.fingerprint(model)
    overwrite(model / "model.safetensors", offset)
    after = base_model.fingerprint(model)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["config.json"] == before["config.json"]


def test_blocks_of_large_files_are_spread_evenly(model):
    """Any change as long as the gap between two blocks is seen."""
    before = base_model.fingerprint(model)
    overwrite(model / "model.safetensors", 5 << 20, b"x" * (90 << 10))
    assert base_model.fingerprint(model) != before


def test_the_first_note_stays_and_names_what_changed(model, tmp_path):
    base_model.check(tmp_path, str(model))  # nothing noted yet
    base_model.note(tmp_path, str(model))
    base_model.check(tmp_path, str(model))
    (model / "config.json").write_text('{"other": 1}')
    (model / "tokenizer.json").write_text("{}")
    base_model.note(tmp_path, str(model))
    with pytest.raises(UsageError, match=r"config\.json, tokenizer\.json changed since"):
        base_model.check(tmp_path, str(model))


def test_a_file_that_is_gone_is_named(model, tmp_path):
    base_model.note(tmp_path, str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors changed since"):
        base_model.check(tmp_path, str(model))
    json_files.write(tmp_path / "model.json", base_model.fingerprint(model))
    base_model.check(tmp_path, str(model))
