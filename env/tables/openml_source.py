"""Published tables from OpenML, through the `openml` package and its own cache."""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from env.tables.raw_table import RawTable, SourceError
from env.tables.readers import read_table
from env.tables.registry import Entry

NUM_TRIES = 3
"""Requests for one file at most; the package waits one second more before each."""
DEADLINE_S = 600.0
"""Seconds for one table: the package sets no timeout of its own on a server that hangs."""


def fetch(entry: Entry, *, deadline_s: float = DEADLINE_S) -> RawTable:
    """The published ARFF file of an OpenML table, downloaded or from the package's cache.

    Raises:
      SourceError: when it cannot be had; the text is the reason.
    """
    try:
        import openml
        import requests
    except ImportError as error:
        raise SourceError(f"the openml package cannot be imported ({error})") from None
    with _settings(openml):
        try:
            path = _within(deadline_s, lambda: _download(openml, int(entry.source_id)))
            return read_table(path)
        except (openml.exceptions.PyOpenMLError, requests.RequestException) as error:
            raise SourceError(_reason(error, openml.config.server)) from None


def _download(openml, data_id: int) -> Path:
    dataset = openml.datasets.get_dataset(data_id, download_data=True)
    if not _is_intact(dataset):
        # An interrupted download stays in the package's cache and is never checked again there.
        dataset = openml.datasets.get_dataset(data_id, download_data=True, force_refresh_cache=True)
    return Path(dataset.data_file)


def _is_intact(dataset) -> bool:
    if dataset.md5_checksum is None:
        return True
    with open(dataset.data_file, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == dataset.md5_checksum


@contextlib.contextmanager
def _settings(openml) -> Iterator[None]:
    """Bounded tries, and ARFF rather than Parquet: the files that the paper's tables came from."""
    policy, tries = openml.config.retry_policy, openml.config.connection_n_retries
    variable = openml.config.OPENML_SKIP_PARQUET_ENV_VAR
    skip_parquet = os.environ.get(variable)
    openml.config.set_retry_policy("human", NUM_TRIES)
    os.environ[variable] = "true"
    try:
        yield
    finally:
        openml.config.set_retry_policy(policy, tries)
        if skip_parquet is None:
            del os.environ[variable]
        else:
            os.environ[variable] = skip_parquet


def _within(deadline_s: float, call: Callable[[], Path]) -> Path:
    """The result of `call`, which is left behind in its thread when it takes too long."""
    results: list[Path] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="openml-download", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if errors:
        raise errors[0]
    if not results:
        raise SourceError(f"no complete answer within {deadline_s:g} s")
    return results[0]


def _reason(error: Exception, server: str) -> str:
    text = " ".join(str(error).split())
    # The system's own words, out of the nested text of a connection error.
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return f"cannot reach {server} ({found[1].strip()})"
    return f"{type(error).__name__}: {text[:300]}"
