"""Versions that a run depends on: code, interpreter, machine and libraries."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "scikit-learn",
    "transformers",
    "tokenizers",
    "safetensors",
)


def current() -> dict[str, Any]:
    """Versions by name; None for a missing library and for the commit outside a checkout."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _library(name) for name in _LIBRARIES},
    }


def command() -> str:
    """Command line of this process as it was typed, quoted for a shell."""
    arguments = ["python", *sys.orig_argv[1:]]
    is_command = Path(arguments[1]).name == "etpo" if len(arguments) > 1 else False
    return shlex.join(["etpo", *arguments[2:]] if is_command else arguments)


def _library(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of this code, followed by "+changes" where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    # A package that is installed inside another checkout has no commit of its own.
    if top is None or Path(top).resolve() != root:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
