"""Sources of the paper's tables: a rule, OpenML, or Kaggle.

OpenML tables come through the `openml` package and its own cache, Kaggle tables through the
`kaggle` client and the user's own credentials. A real download from Kaggle needs such credentials;
the tests put a stand-in for the client in its place.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from env.base import UsageError
from env.tables.readers import read_table
from env.tables.registry import Entry
from env.tables.table import Column, RawTable

OPENML_TRIES = 3
"""Requests for one file at most; the package waits one second more before each."""
OPENML_DEADLINE_S = 600.0
"""Seconds for one table: the package sets no timeout of its own on a server that hangs."""
KAGGLE_TIMEOUT_S = 600.0
_COMPETITION_FILE = "train.csv"


class SourceError(Exception):
    """A source cannot provide a published table; the text is the reason."""


_LINES = (
    *((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    *((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    *((0, 4, 8), (2, 4, 6)),
)
_SQUARES = tuple(
    f"{row}-{column}-square"
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)


def balance_scale() -> RawTable:
    """Generates OpenML 11: weights and distances 1 to 5 on both arms, and the side that sinks.

    The last attribute varies fastest.
    """
    arms = np.indices((5, 5, 5, 5), np.int64).reshape(4, -1) + 1
    names = ("left-weight", "left-distance", "right-weight", "right-distance")
    left, right = arms[0] * arms[1], arms[2] * arms[3]
    return RawTable(
        (
            *(Column(name, arm.astype(np.float64)) for name, arm in zip(names, arms, strict=True)),
            Column("class", (1 + np.sign(right - left)).astype(np.float64), ("L", "B", "R")),
        )
    )


def tic_tac_toe() -> RawTable:
    """Generates OpenML 50: boards that end a game in which x moves first, and whether x has won.

    Wins come first, then losses, then draws, each in lexicographic order of x < o < b.
    """
    boards = np.indices((3,) * 9, np.int8).reshape(9, -1).T  # 0 is x, 1 is o, 2 is blank
    x_lines, o_lines = (
        (boards[:, np.array(_LINES)] == player).all(axis=2).any(axis=1) for player in (0, 1)
    )
    lead = (boards == 0).sum(axis=1) - (boards == 1).sum(axis=1)
    wins = boards[x_lines & ~o_lines & (lead == 1)]
    losses = boards[o_lines & ~x_lines & (lead == 0)]
    draws = boards[~x_lines & ~o_lines & (lead == 1) & (boards != 2).all(axis=1)]
    rows = np.concatenate((wins, losses, draws))
    positive = np.arange(len(rows)) < len(wins)
    return RawTable(
        (
            *(
                Column(name, (2 - column).astype(np.float64), ("b", "o", "x"))
                for name, column in zip(_SQUARES, rows.T, strict=True)
            ),
            Column("Class", positive.astype(np.float64), ("negative", "positive")),
        )
    )


def fetch_from_openml(entry: Entry, *, deadline_s: float = OPENML_DEADLINE_S) -> RawTable:
    """Reads the published ARFF file of an OpenML table, downloaded or from the package's cache.

    Raises:
      SourceError: when the file cannot be downloaded.
    """
    try:
        import openml
        import requests
    except ImportError as error:
        raise SourceError(f"the openml package cannot be imported ({error})") from None
    with _openml_settings(openml):
        try:
            path = _within(deadline_s, lambda: _download_from_openml(openml, int(entry.source_id)))
            return read_table(path)
        except (openml.exceptions.PyOpenMLError, requests.RequestException) as error:
            raise SourceError(_reason(error, openml.config.server)) from None


def _download_from_openml(openml, data_id: int) -> Path:
    dataset = openml.datasets.get_dataset(data_id, download_data=True)
    if not _is_intact(dataset):
        # The package keeps an interrupted download in its cache and never checks it again.
        dataset = openml.datasets.get_dataset(data_id, download_data=True, force_refresh_cache=True)
    return Path(dataset.data_file)


def _is_intact(dataset) -> bool:
    if dataset.md5_checksum is None:
        return True
    with open(dataset.data_file, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == dataset.md5_checksum


@contextlib.contextmanager
def _openml_settings(openml) -> Iterator[None]:
    """Bounds the tries of the package and selects ARFF files, the source of the paper's tables."""
    policy, tries = openml.config.retry_policy, openml.config.connection_n_retries
    variable = openml.config.OPENML_SKIP_PARQUET_ENV_VAR
    skip_parquet = os.environ.get(variable)
    openml.config.set_retry_policy("human", OPENML_TRIES)
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
    """Returns the result of `call`; a call that takes too long is left to its thread."""
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
    # The text of a connection error is nested; this is the operating system's message in it.
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return f"cannot reach {server} ({found[1].strip()})"
    return f"{type(error).__name__}: {text[:300]}"


def has_kaggle_credentials() -> bool:
    """Returns whether the client would find a token or key of the user."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return True
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return True
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle").expanduser()
    return any((folder / name).is_file() for name in ("kaggle.json", "access_token"))


def fetch_from_kaggle(entry: Entry) -> RawTable:
    """Downloads and reads the published CSV file of a Kaggle table.

    Raises:
      SourceError: when the file cannot be downloaded.
    """
    # A virtual environment that is not activated is not on the path.
    folders = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    client = shutil.which("kaggle", path=os.pathsep.join(folders))
    if client is None:
        raise SourceError("the Kaggle client is not installed (pip install kaggle)")
    if not has_kaggle_credentials():
        raise SourceError(
            "there are no Kaggle credentials (KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, "
            "or a file of them in ~/.kaggle)"
        )
    with tempfile.TemporaryDirectory() as folder:
        _download_from_kaggle(client, entry.source_id, folder)
        return _find_table(entry, Path(folder))


def _download_from_kaggle(client: str, source_id: str, folder: str) -> None:
    kind, name = source_id.split("/", 1)
    command = [client, kind, "download", name, "-p", folder, "-q"]
    if kind == "competitions":
        command += ["-f", _COMPETITION_FILE]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=KAGGLE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"the Kaggle client took more than {KAGGLE_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise SourceError(f"the Kaggle client failed with {done.returncode}: {said[:300]}")
    for archive in sorted(Path(folder).rglob("*.zip")):
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        except zipfile.BadZipFile as error:
            raise SourceError(f"the Kaggle client left a damaged archive ({error})") from None


def _find_table(entry: Entry, folder: Path) -> RawTable:
    # The uploader chooses names and number of the files in a Kaggle archive.
    paths = sorted(folder.rglob("*.csv"))
    for path in paths:
        try:
            table = read_table(path)
        except UsageError:
            continue
        names = [column.name for column in table.columns]
        if entry.target in names and table.num_rows == entry.raw_rows:
            return table
    raise SourceError(
        f"no file with a column {entry.target!r} and {entry.raw_rows} rows among what Kaggle sent: "
        f"{', '.join(path.name for path in paths) or 'nothing'}"
    )
