"""Flagfiles: files with one flag on a line, which stand for `--flagfile=FILE` on a command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from env.base import UsageError


def expand_flagfiles(arguments: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """The arguments with the lines of each `--flagfile` in its place.

    A flagfile holds one flag on a line, taken as it stands; empty lines and lines that begin with #
    or // are comments. Its own `--flagfile` lines are relative to its folder, those on the command
    line to the working directory.

    Args:
      arguments: the command line without the name of the program.
      folders: where a relative name that does not exist is looked up, with or without the prefix
        `launch/`.

    Raises:
      UsageError: if a flagfile is missing, cannot be read or names itself again.
    """
    return _expand(arguments, Path(), folders, ())


def _expand(
    arguments: Sequence[str], base: Path, folders: Sequence[Path], parents: tuple[Path, ...]
) -> list[str]:
    said_by = f"{parents[-1]}: " if parents else ""
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, separator, value = argument.partition("=")
        if argument == "--":
            return [*expanded, argument, *rest]
        if flag not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        name = value if separator else next(rest, None)
        if name is None:
            raise UsageError(f"{said_by}--flagfile: needs the name of a file")
        if not name:
            continue
        said_by_flag = f"{said_by}--flagfile={name}"
        candidates = _candidates(Path(name).expanduser(), base, folders)
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            raise UsageError(f"{said_by_flag}: there is no such file{_places(candidates)}")
        if any(path.samefile(parent) for parent in parents):
            raise UsageError(f"{said_by_flag}: leads back to itself")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{said_by_flag}: cannot be read ({error})") from None
        inner = [line for line in lines if line and not line.startswith(("#", "//"))]
        # Unlike on the command line, a name and its value may stand apart on one line.
        inner = [re.sub(r"^(--?flagfile)\s+", r"\1=", line) for line in inner]
        expanded += _expand(inner, path.parent, folders, (*parents, path))
    return expanded


def _candidates(name: Path, base: Path, folders: Sequence[Path]) -> list[Path]:
    shipped = name.relative_to("launch") if name.parts[:1] == ("launch",) else name
    return list(dict.fromkeys([base / name, *(folder / shipped for folder in folders)]))


def _places(candidates: Sequence[Path]) -> str:
    own, *others = (path.parent.absolute() for path in candidates)
    shipped = sorted(path.name for folder in others for path in folder.glob("*.flags"))
    searched = f" in {own} and {', '.join(map(str, others))}" if others else ""
    return searched + (f"; the shipped ones are {', '.join(shipped)}" if shipped else "")
