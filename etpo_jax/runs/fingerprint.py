"""Which model a run began with, so that it never goes on over another one.

Adapters and replayed probabilities belong to the weights that they were made with. `model.json` in
the run directory holds a fingerprint of each file that was read.
"""

import hashlib
from pathlib import Path

from env.base import UsageError
from etpo_jax.runs import json_files
from etpo_jax.runs.directory import MODEL
from models.repository import local_folder

_FILES = ("config.json", "tokenizer.json", "*.safetensors")
# Of each file so many blocks are read, spread evenly, its ends among them.
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def note(run_path: Path, model: str) -> None:
    """Notes the model of a run, once it was read without errors; the first note stays."""
    if not (run_path / MODEL).exists():
        json_files.write(run_path / MODEL, fingerprint(local_folder(model)))


def check(run_path: Path, model: str) -> None:
    """Compares a model with that of a run; a run without a note of it is taken at its word.

    Raises:
      ModelError: the model is not there.
      UsageError: naming the files that are others now.
    """
    if not (run_path / MODEL).exists():
        return
    noted, found = json_files.read(run_path / MODEL), fingerprint(local_folder(model))
    others = [name for name in {**noted, **found} if noted.get(name) != found.get(name)]
    if others:
        raise UsageError(
            f"--model={model}: {', '.join(others)} changed since {run_path} began; put those files "
            f"back, or delete its {MODEL} if they hold the same model in another form"
        )


def fingerprint(folder: Path) -> dict[str, str]:
    """Size in bytes and part of a SHA-256 of each file that training reads, by name.

    Of files over 4 MiB blocks are hashed, so that weights of any size take well under a second: it
    tells models apart and does not guard against forgery.
    """
    paths = sorted(path for pattern in _FILES for path in folder.glob(pattern))
    return {path.name: _fingerprint(path) for path in paths}


def _fingerprint(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return f"{size} {digest.hexdigest()[:16]}"
