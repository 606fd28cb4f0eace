"""Runs a command without root's rights, where the tests themselves run as root."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# An interpreter in root's home is out of reach of others. In a mount namespace of its own that home
# becomes an empty folder with the interpreter alone; the host sees nothing of it.
_REVEAL = """
set -e
hidden=$1; prefix=$2; shift 2
kept=$(mktemp -d)
mount --bind "$prefix" "$kept"
mount -t tmpfs -o mode=755 none "$hidden"
mkdir -p "$prefix"
mount --bind "$kept" "$prefix"
umount "$kept"
rmdir "$kept"
exec "$@"
"""
_DROP = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
]


def command(arguments: list[str]) -> list[str]:
    """`arguments` as the user `nobody` without capabilities; skips the test where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a command as somebody else")
    if not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("util-linux (setpriv, unshare) is not installed")
    prefix = Path(sys.base_prefix)
    hidden = [folder for folder in (prefix, *prefix.parents) if not folder.stat().st_mode & 0o001]
    if not hidden:
        return [*_DROP, *arguments]
    reveal = ["unshare", "-m", "sh", "-c", _REVEAL, "sh", str(hidden[-1]), str(prefix)]
    return [*reveal, *_DROP, *arguments]
