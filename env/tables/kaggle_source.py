"""Published tables from Kaggle, through the `kaggle` client and the user's own credentials.

Only a holder of credentials can run the downloads themselves; the tests put a stand-in for the
client in its place.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from env.base import UsageError
from env.tables.raw_table import RawTable, SourceError
from env.tables.readers import read_table
from env.tables.registry import Entry

TIMEOUT_S = 600.0
_COMPETITION_FILE = "train.csv"


def has_credentials() -> bool:
    """Whether the client would find a token or key of the user."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return True
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return True
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle").expanduser()
    return any((folder / name).is_file() for name in ("kaggle.json", "access_token"))


def fetch(entry: Entry) -> RawTable:
    """The published CSV file of a Kaggle table.

    Raises:
      SourceError: when it cannot be had; the text is the reason.
    """
    # A virtual environment that is used without being activated is not on the path.
    folders = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    client = shutil.which("kaggle", path=os.pathsep.join(folders))
    if client is None:
        raise SourceError("the Kaggle client is not installed (pip install kaggle)")
    if not has_credentials():
        raise SourceError(
            "there are no Kaggle credentials (KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, "
            "or a file of them in ~/.kaggle)"
        )
    with tempfile.TemporaryDirectory() as folder:
        _download(client, entry.source_id, folder)
        return _find_table(entry, Path(folder))


def _download(client: str, source_id: str, folder: str) -> None:
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
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"the Kaggle client took more than {TIMEOUT_S:g} s") from None
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
    # Names and number of files inside a Kaggle archive are the uploader's choice.
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
