"""The real `openml` package against a loopback server: published rows, faults and outages."""

import dataclasses
import importlib
import socket

import numpy as np
import pytest

from env.base import UsageError
from env.datasets import fetch, load_dataset
from env.tables import registry, sources
from env.tables.sources import SourceError
from tests.env.tables.openml_server import OpenMLServer

NAME = "balance_scale"


def arff_text():
    """The published file of the table, as far as its content goes."""
    table = sources.balance_scale()
    *arms, label = table.columns
    lines = ["@relation balance-scale"]
    lines += [f"@attribute {column.name} real" for column in arms]
    lines += ["@attribute class {L, B, R}", "@data"]
    for i in range(table.num_rows):
        cells = [str(int(column.values[i])) for column in arms]
        lines.append(",".join([*cells, label.categories[int(label.values[i])]]))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def openml():
    """The package, whose import takes seconds."""
    return importlib.import_module("openml")


@pytest.fixture
def entry(monkeypatch):
    """A table of the paper that pretends to come from OpenML only."""
    entry = dataclasses.replace(registry.find(NAME), source="openml")
    monkeypatch.setitem(registry.REGISTRY, NAME, entry)
    return entry


@pytest.fixture
def delays(openml, monkeypatch):
    """The pauses that the package makes between its tries, not made."""
    delays = []
    monkeypatch.setattr("openml._api_calls.time.sleep", delays.append)
    return delays


@pytest.fixture
def server(entry, tmp_path, cache_dir, delays, monkeypatch):
    with OpenMLServer(int(entry.source_id), "balance-scale", arff_text()) as server:
        monkeypatch.setattr("openml.config.server", server.url)
        monkeypatch.setattr("openml.config._root_cache_directory", tmp_path / "openml")
        yield server


def refuse_connections(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api/v1/xml"
    monkeypatch.setattr("openml.config.server", url)


def test_the_server_answers_all_that_the_package_asks(server, monkeypatch, openml):
    monkeypatch.setenv("OPENML_SKIP_PARQUET", "true")
    dataset = openml.datasets.get_dataset(
        "balance-scale",
        download_data=True,
        download_qualities=True,
        download_features_meta_data=True,
    )
    assert dataset.qualities == {"NumberOfInstances": 625.0}
    assert len(dataset.features) == 5
    with pytest.raises(openml.exceptions.OpenMLServerNoResult, match="code 111: Unknown dataset"):
        openml.datasets.get_dataset(99)


def test_a_table_is_downloaded_verified_and_cached(server, entry, cache_dir):
    dataset = load_dataset(NAME)
    assert dataset.checksum == entry.checksum
    assert dataset.class_names == ("L", "B", "R")
    asked = len(server.requests)
    assert (cache_dir / f"{NAME}.npz").is_file()
    again = load_dataset(NAME)
    np.testing.assert_array_equal(again.features, dataset.features)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(dataset).keys()
    assert again.feature_names == dataset.feature_names
    assert len(server.requests) == asked
    assert fetch(NAME) == "cached"


def test_settings_of_the_package_are_left_as_they_were(server, entry, openml):
    before = openml.config.retry_policy, openml.config.connection_n_retries
    sources.fetch_from_openml(entry)
    assert (openml.config.retry_policy, openml.config.connection_n_retries) == before


def test_two_server_errors_are_waited_out(server, entry, delays):
    server.faults["description"] = ["500"]
    server.faults["file"] = ["500", "500"]
    assert load_dataset(NAME).checksum == entry.checksum
    assert delays == [1, 1, 2]


def test_lasting_server_errors_end_in_one_line(server):
    server.faults["file"] = ["500"] * 9
    with pytest.raises(UsageError) as caught:
        load_dataset(NAME)
    assert "balance_scale is neither cached nor to be had from OpenML 11" in str(caught.value)
    assert "500" in str(caught.value)
    assert server.requests.count("/file.arff") == sources.OPENML_TRIES


def test_a_truncated_transfer_is_tried_again(server, entry):
    server.faults["file"] = ["truncated"]
    assert load_dataset(NAME).checksum == entry.checksum
    assert server.requests.count("/file.arff") == 2


def test_a_file_that_is_not_the_one_described_is_refused(server, cache_dir):
    server.md5 = "0" * 32
    with pytest.raises(UsageError, match="Checksum of downloaded file is unequal"):
        load_dataset(NAME)
    assert not cache_dir.exists()


def test_a_half_written_file_in_the_packages_cache_is_replaced(server, entry, tmp_path):
    sources.fetch_from_openml(entry)
    (path,) = (tmp_path / "openml").rglob("dataset.arff")
    with open(path, "r+") as file:
        file.truncate(3000)
    assert load_dataset(NAME).checksum == entry.checksum


def test_changed_rows_are_refused_with_both_checksums_unless_accepted(server, entry, cache_dir):
    # The first of the prepared rows.
    server.arff = server.arff.replace("4,2,4,2,B", "4,2,4,2,L")
    with pytest.raises(UsageError) as caught:
        load_dataset(NAME)
    assert entry.checksum in str(caught.value)
    assert "--nostrict_data" in str(caught.value)
    assert not cache_dir.exists()
    changed = load_dataset(NAME, strict=False)
    assert changed.checksum in str(caught.value)
    with pytest.raises(UsageError, match=changed.checksum):
        load_dataset(NAME)
    assert load_dataset(NAME, strict=False).checksum == changed.checksum


def test_a_refused_connection_names_reason_and_both_ways(server, monkeypatch):
    refuse_connections(monkeypatch)
    with pytest.raises(UsageError) as caught:
        load_dataset(NAME)
    message = str(caught.value)
    assert "(Connection refused)" in message
    assert "etpo datasets fetch balance_scale" in message
    assert "put balance-scale.arff into a folder and give it as --data_dir" in message
    assert "\n" not in message


def test_an_unknown_table_is_said_so(server, entry):
    unknown = dataclasses.replace(entry, source_id="99")
    with pytest.raises(SourceError, match="code 111: Unknown dataset"):
        sources.fetch_from_openml(unknown)


def test_a_server_that_hangs_is_given_up(server, entry):
    server.faults["file"] = ["hang"]
    with pytest.raises(SourceError, match=r"no complete answer within 0\.5 s"):
        sources.fetch_from_openml(entry, deadline_s=0.5)


def test_an_outage_never_loses_a_cached_copy(server, entry, cache_dir, monkeypatch):
    load_dataset(NAME)
    refuse_connections(monkeypatch)
    assert fetch(NAME) == "cached"
    assert load_dataset(NAME).checksum == entry.checksum
    path = cache_dir / f"{NAME}.npz"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match="Connection refused"):
        load_dataset(NAME)
    assert path.read_bytes() == damaged
    monkeypatch.setattr("openml.config.server", server.url)
    assert fetch(NAME) == "fetched"
    assert load_dataset(NAME).checksum == entry.checksum
