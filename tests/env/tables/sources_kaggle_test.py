"""Kaggle tables through a stand-in for the client: real downloads need someone's credentials."""

import dataclasses
import os
import zipfile

import pytest

from env.base import UsageError
from env.datasets import load_dataset
from env.tables import registry, sources
from env.tables.sources import SourceError

# Leaves its arguments in $KAGGLE_STUB_LOG, fails with $KAGGLE_STUB_FAIL, or copies what it should
# "download" into the folder after -p.
CLIENT = """#!/bin/sh
echo "$@" > "$KAGGLE_STUB_LOG"
if [ -n "$KAGGLE_STUB_FAIL" ]; then echo "some text"; echo "$KAGGLE_STUB_FAIL" >&2; exit 1; fi
while [ "$1" != "-p" ]; do shift; done
cp "$KAGGLE_STUB_FILES"/* "$2"
"""
CSV = "number,age,radt\n1,30,0\n2,40,1\n3,50,0\n"


@pytest.fixture
def entry():
    return dataclasses.replace(registry.find("pharyngitis"), raw_rows=3)


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """Neither client nor credentials."""
    for name in list(os.environ):
        if name.startswith("KAGGLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    return tmp_path


@pytest.fixture
def client(bare_machine, monkeypatch):
    """A stand-in client, credentials, and the folder of what it downloads."""
    (bare_machine / "bin").mkdir()
    program = bare_machine / "bin" / "kaggle"
    program.write_text(CLIENT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bare_machine / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "0")
    files = bare_machine / "files"
    files.mkdir()
    monkeypatch.setenv("KAGGLE_STUB_FILES", str(files))
    monkeypatch.setenv("KAGGLE_STUB_LOG", str(bare_machine / "log"))
    return bare_machine


def test_a_data_set_comes_as_an_archive(client, entry):
    with zipfile.ZipFile(client / "files" / "pharyngitis.zip", "w") as archive:
        archive.writestr("README.csv", "other\n1\n")
        archive.writestr("data/Pharyngitis Data.csv", CSV)
    table = sources.fetch_from_kaggle(entry)
    assert [column.name for column in table.columns] == ["number", "age", "radt"]
    words = (client / "log").read_text().split()
    assert words[:3] == ["datasets", "download", "yoshifumimiya/pharyngitis"]
    assert words[3] == "-p"
    assert words[5:] == ["-q"]


def test_a_competition_gives_one_file(client):
    entry = dataclasses.replace(registry.find("kidney_stone"), raw_rows=3, target="radt")
    (client / "files" / "train.csv").write_text(CSV)
    assert sources.fetch_from_kaggle(entry).num_rows == 3
    words = (client / "log").read_text().split()
    assert words[:3] == ["competitions", "download", "playground-series-s3e12"]
    assert words[5:] == ["-q", "-f", "train.csv"]


def test_a_file_of_another_size_is_not_taken(client, entry):
    (client / "files" / "old.csv").write_text(CSV + "4,60,1\n")
    with pytest.raises(SourceError, match=r"column .radt. and 3 rows .* sent: old\.csv"):
        sources.fetch_from_kaggle(entry)


def test_a_damaged_archive_is_said_so(client, entry):
    (client / "files" / "data.zip").write_bytes(b"not an archive")
    with pytest.raises(SourceError, match="damaged archive"):
        sources.fetch_from_kaggle(entry)


def test_what_the_client_says_is_passed_on(client, entry, monkeypatch):
    monkeypatch.setenv("KAGGLE_STUB_FAIL", "403 - Forbidden: accept the rules first")
    with pytest.raises(SourceError, match="failed with 1: 403 - Forbidden: accept the rules first"):
        sources.fetch_from_kaggle(entry)


def test_without_a_client(bare_machine, entry):
    with pytest.raises(SourceError, match="client is not installed"):
        sources.fetch_from_kaggle(entry)


def test_without_credentials_reason_and_both_ways_are_named(client, cache_dir, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(UsageError) as caught:
        load_dataset("pharyngitis")
    message = str(caught.value)
    assert "pharyngitis is neither cached nor to be had from Kaggle datasets/yosh" in message
    assert "there are no Kaggle credentials" in message
    assert "fetch pharyngitis` with Kaggle credentials" in message
    assert "put pharyngitis.csv into a folder and give it as --data_dir" in message


@pytest.mark.parametrize("name", ["kaggle.json", "access_token"])
def test_credentials_in_files(bare_machine, name):
    assert not sources.has_kaggle_credentials()
    (bare_machine / "kaggle").mkdir()
    (bare_machine / "kaggle" / name).write_text("{}")
    assert sources.has_kaggle_credentials()


def test_credentials_in_the_environment(bare_machine, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    assert not sources.has_kaggle_credentials()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "0")
    assert sources.has_kaggle_credentials()
