"""The ten best distinct programs of a run, and the folder that keeps them."""

import ast
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from env.tasks.answers import parse
from etpo_jax.runs import files
from etpo_jax.runs.best import Best

SIZE = 10
INDEX = "index.json"

_NAME = re.compile(r"\d+_-?[\d.]+\.py")


class TopPrograms:
    """The best programs so far, each once: layout and comments make no other program."""

    def __init__(self) -> None:
        self._best: dict[str, Best] = {}

    @property
    def ranked(self) -> tuple[Best, ...]:
        """At most `SIZE` programs, the best first; of equal rewards the earlier is the better."""
        return tuple(sorted(self._best.values(), key=_rank))

    def note(self, candidate: Best) -> None:
        """Takes a program in if it belongs to the best."""
        ranked = self.ranked
        if len(ranked) == SIZE and _rank(candidate) > _rank(ranked[-1]):
            return
        key = normalised(candidate.program)
        self._best[key] = min(candidate, self._best.get(key, candidate), key=_rank)
        if len(self._best) > SIZE:
            del self._best[max(self._best, key=lambda key: _rank(self._best[key]))]


def _rank(program: Best) -> tuple[float, int]:
    return -program.reward, program.env_step


def normalised(program: str) -> str:
    """Returns the text of a program without what its layout and its comments add."""
    tree = parse(program)
    with contextlib.suppress(RecursionError):
        if tree is not None:
            return ast.unparse(tree)
    return " ".join(program.split())


def write(folder: Path, programs: Sequence[Best], *, is_script: bool) -> None:
    """Makes a folder hold these programs and their scores, and no other programs.

    Each file is called after its rank and its reward; `index.json` has the scores of all.

    Args:
      folder: is created if there is any program.
      programs: the best first.
      is_script: as for `Best.code`.
    Raises:
      OSError: naming the file that could not be written.
    """
    names = [f"{rank:02}_{best.reward:.4f}.py" for rank, best in enumerate(programs, start=1)]
    if programs:
        folder.mkdir(exist_ok=True)
    for name, best in zip(names, programs, strict=True):
        files.replace(folder / name, best.code(is_script=is_script))
    if programs:
        rows = [
            {
                "file": name,
                **{key: value for key, value in best.to_json().items() if key != "program"},
            }
            for name, best in zip(names, programs, strict=True)
        ]
        files.write_json(folder / INDEX, {"programs": rows})
    for path in folder.iterdir() if folder.is_dir() else ():
        is_ours = _NAME.fullmatch(path.name) or (path.name == INDEX and not programs)
        if (is_ours and path.name not in names) or files.is_unfinished(path.name):
            path.unlink()
