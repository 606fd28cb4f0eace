"""A cache of prepared tables on disk, one small file for each."""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from env.tables.table import Dataset

ENVIRONMENT_VARIABLE = "ETPO_DATA_CACHE"


def default_folder() -> Path:
    """Returns `$ETPO_DATA_CACHE`, or `etpo_jax/datasets` in the user's cache folder."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "etpo_jax" / "datasets"


def load(folder: Path, name: str) -> Dataset | None:
    """Returns the cached table of that name; None if it is absent or damaged."""
    try:
        # `np.load` by itself leaves a damaged file open.
        with (
            open(folder / f"{name}.npz", "rb") as raw,
            np.load(raw, allow_pickle=False) as file,
        ):
            dataset = Dataset(
                name=name,
                description=str(file["description"]),
                features=file["features"],
                labels=file["labels"],
                feature_names=tuple(str(n) for n in file["feature_names"]),
                class_names=tuple(str(n) for n in file["class_names"]),
            )
            return dataset if dataset.checksum == str(file["checksum"]) else None
    except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile, EOFError):
        return None


def store(folder: Path, dataset: Dataset) -> None:
    """Writes a table; readers at the same time, and crashes, leave the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, prefix=f".{dataset.name}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                description=np.array(dataset.description),
                features=dataset.features,
                labels=dataset.labels,
                feature_names=np.array(dataset.feature_names),
                class_names=np.array(dataset.class_names),
                checksum=np.array(dataset.checksum),
            )
        os.replace(part, folder / f"{dataset.name}.npz")
    except BaseException:
        os.unlink(part)
        raise
