"""Fixtures: folders of published and prepared tables, and a cache of the test's own."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def prepared_dir():
    """Folder of prepared tables; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the prepared tables are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def raw_dir(prepared_dir):
    """Folder of published raw files; the test is skipped where it is absent."""
    return prepared_dir / "raw"


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """An empty cache of prepared tables that programs and `load_dataset` use."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ETPO_DATA_CACHE", str(folder))
    return folder
