"""The note of a run's model: what it tells apart, and when it is written."""

import pytest

from env.base import UsageError
from etpo_jax.runs import files, fingerprint


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
    before = fingerprint.fingerprint(model)
    assert set(before) == {"config.json", "model.safetensors"}
    (model / "README.md").write_text("other words")
    assert fingerprint.fingerprint(model) == before


@pytest.mark.parametrize("offset", [0, (9 << 20) - 1], ids=["first byte", "last byte"])
def test_both_ends_of_large_files_count(model, offset):
    before = fingerprint.fingerprint(model)
    overwrite(model / "model.safetensors", offset)
    after = fingerprint.fingerprint(model)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["config.json"] == before["config.json"]


def test_blocks_of_large_files_are_spread_evenly(model):
    """Any change as long as the gap between two blocks is seen."""
    before = fingerprint.fingerprint(model)
    overwrite(model / "model.safetensors", 5 << 20, b"x" * (90 << 10))
    assert fingerprint.fingerprint(model) != before


def test_the_first_note_stays_and_names_what_changed(model, tmp_path):
    fingerprint.check(tmp_path, str(model))  # nothing noted yet
    fingerprint.note(tmp_path, str(model))
    fingerprint.check(tmp_path, str(model))
    (model / "config.json").write_text('{"other": 1}')
    (model / "tokenizer.json").write_text("{}")
    fingerprint.note(tmp_path, str(model))
    with pytest.raises(UsageError, match=r"config\.json, tokenizer\.json changed since"):
        fingerprint.check(tmp_path, str(model))


def test_a_file_that_is_gone_is_named(model, tmp_path):
    fingerprint.note(tmp_path, str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors changed since"):
        fingerprint.check(tmp_path, str(model))
    files.write_json(tmp_path / "model_fingerprint.json", fingerprint.fingerprint(model))
    fingerprint.check(tmp_path, str(model))
