"""Fingerprints of the model that a run began with, so that it never continues over another one.

Adapters and replayed probabilities belong to the weights that they were made with.
`model_fingerprint.json` in the run directory holds a fingerprint of each file of the model.
"""

import hashlib
from pathlib import Path

from env.base import UsageError
from etpo_jax.runs import files
from etpo_jax.runs.directory import MODEL_FINGERPRINT
from models.repository import local_folder

_FILES = ("config.json", "tokenizer.json", "*.safetensors")
# Blocks that are read of a large file, spread evenly from its first byte to its last.
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def note(run_path: Path, model: str) -> None:
    """Stores the fingerprint of a run's model, unless the run has one already.

    To be called once the model has been read without errors.
    """
    if not (run_path / MODEL_FINGERPRINT).exists():
        files.write_json(run_path / MODEL_FINGERPRINT, fingerprint(local_folder(model)))


def check(run_path: Path, model: str) -> None:
    """Compares a model with the fingerprint of a run; a run without one passes.

    Raises:
      ModelError: the model is missing.
      UsageError: naming the files that have changed.
    """
    stored = run_path / MODEL_FINGERPRINT
    if not stored.exists():
        return
    noted, found = files.read_json(stored), fingerprint(local_folder(model))
    changed = [name for name in {**noted, **found} if noted.get(name) != found.get(name)]
    if changed:
        raise UsageError(
            f"--model={model}: {', '.join(changed)} changed since {run_path} began; put those "
            f"files back, or delete {stored.name} there if they hold the same model in another form"
        )


def fingerprint(folder: Path) -> dict[str, str]:
    """Returns the size in bytes and a part of a SHA-256 of each file that training reads, by name.

    A file over 4 MiB is hashed in part, so that weights of any size take well under a second: the
    fingerprint tells models apart and does not guard against forgery.
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
