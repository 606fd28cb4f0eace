"""Bad input of any kind ends a program in one line: seeded mutations of flags, folders and files.

Programs are called in this process, each case with flags of its own. `python -m tests.fuzz_test
CASES SEED` tries more, and prints the cases that fail.
"""

import collections
import contextlib
import copy
import io
import json
import logging
import os
import random
import shutil
import string
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from env import command_line
from env.datasets import load_dataset
from etpo_jax import build, export, inspect_run, plan
from etpo_jax import flags as settings_flags
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.launch_files import launch_folder
from etpo_jax.renamed import RENAMED
from etpo_jax.runs import directory, run_log
from etpo_jax.runs.best import Best
from etpo_jax.runs.checkpoint import Checkpoints
from etpo_jax.runs.directory import RunDirectory
from models.errors import ModelError

VALUES = (
    *("", "0", "-1", "1", "1e308", "-inf", "nan", "1e-320", "99999999999999999999", "3.7", "0x10"),
    *(
        "true",
        "None",
        "[]",
        "{}",
        '{"a": [1',
        "\u00e9\u65e5",
        "\x1b[31m",
        "\u2028",
        " ",
        "a b",
        "'",
        '"',
    ),
    *(
        "..",
        "/",
        "/dev/null",
        "/nonexistent/x",
        "-",
        "--",
        "=",
        ":",
        ",",
        ",,=,",
        "a=b,a=b",
        "a:b:c",
    ),
    *(
        "full:tilt=x",
        "lora:rank=0",
        "lora:rank=999999999999",
        "auto",
        "all",
        "x" * 5000,
        "%s%n",
        "$HOME",
    ),
    *("os:path", "os:getcwd", "json:nothing", "nosuch.module:x", "a/b.py:c", "org/name", "tiny"),
)


ENDS: collections.Counter[object] = collections.Counter()
"""Number of cases by exit code."""


@contextlib.contextmanager
def spoken() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def outcome(arguments: Sequence[str], main: Callable[[], object], **options: object) -> str:
    """What was wrong with the end of a program; "" for exit code 0, or 2 with one line."""
    before, sys.argv = sys.argv, ["program", *arguments]
    try:
        with spoken() as (_, err):
            command_line.run(main, **options)  # type: ignore[arg-type]
    except SystemExit as end:
        lines = err.getvalue().splitlines()
        ENDS[end.code] += 1
        if end.code in (None, 0, 1):
            return ""
        is_clear = len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) > 12
        return "" if end.code == 2 and is_clear else f"exit code {end.code}, {lines}"
    except BaseException:
        return traceback.format_exc()
    finally:
        sys.argv = before
    return "did not exit"


def with_own_flags(module: ModuleType, arguments: Sequence[str]) -> str:
    """Calls a program that keeps its flags in a registry of its own."""
    fresh, module._flags = module._flags, copy.deepcopy(module._flags)
    try:
        return outcome(arguments, module.main, flag_values=module._flags, errors=(ModelError,))
    finally:
        module._flags = fresh


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(VALUES)
    alphabet = string.printable + "\u00e9\u65e5\u2028\x00\udcff"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one of the faults that disks, editors and people make."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return b""
    if kind == 2:
        return data[:at] + bytes(rng.randrange(256) for _ in range(8)) + data[at + 8 :]
    if kind == 3:
        return bytes(rng.randrange(256) for _ in range(200))
    if kind == 4:
        return rng.choice(
            (b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 5000, b"\xff\xfe", b"\n\n{}\n")
        )
    if kind == 5:
        return data.replace(
            rng.choice((b":", b",", b"1", b'"', b"e")), rng.choice((b"", b"null", b"-"))
        )
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def changed(values: object, rng: random.Random) -> object:
    """A JSON value with one part of another type."""
    strange = rng.choice((None, 3, -1, 1e400, "x", [], {}, [1], True, {"a": {}}))
    if isinstance(values, dict) and values:
        name = rng.choice(sorted(values))
        if rng.random() < 0.3:
            return {key: value for key, value in values.items() if key != name}
        return {**values, name: changed(values[name], rng) if rng.random() < 0.5 else strange}
    return strange


def make_run(path: Path) -> None:
    """A run directory with rows, a best program and a checkpoint."""
    config = build.Config.from_dict({"dataset": "toy", "model": "tiny"}).to_dict()
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        rows = [
            {
                **{"env_step": i, "episode": i, "t": 0, "dataset": "toy", "prompt": "p"},
                **{"action": "x = 1", "reward": i / 10, "error": "" if i % 2 else "ValueError: no"},
                **{"wall_s": 0.1, "split_scores": [0.5], "cached": False},
            }
            for i in range(1, 11)
        ]
        run.append_episodes(rows)
        run.append_metrics({"update": 1, "env_step": 10, "reward_mean": 0.5, "loss": float("nan")})
        best = Best(0.75, (0.7, 0.8), 3, "toy", 0, "x = 1", "x = 1\n")
        run.write_best(best)
        run.write_top_programs([best])
        run.mark_finished({"env_step": 10, "update": 1})
        with jax.set_mesh(build_mesh()), Checkpoints(run.checkpoints_path, 2) as checkpoints:
            state = {"critic": {"trunk": {"params": {"w": jnp.zeros(3)}}}}
            checkpoints.save(1, state, {"a": np.zeros(2)}, {"update": 1})


class Fuzz:
    """The kinds of cases, each a method that returns what was wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        make_run(self.run)
        self.table = folder / "table.csv"
        rng = np.random.default_rng(0)
        lines = [f"{a:.3f},{b:.0f},{'yes' if a > 0.5 else 'no'}" for a, b in rng.random((40, 2))]
        self.table.write_text("first,second,label\n" + "\n".join(lines) + "\n")
        values = flags.FlagValues()
        settings_flags.define_flags(values)
        self._settings = values
        self._names = list(values)

    def arguments(self, rng: random.Random, names: Sequence[str]) -> list[str]:
        found = []
        for _ in range(rng.randrange(1, 4)):
            name = rng.choice([*names, *RENAMED, "flagfile", "help", text(rng)])
            form = rng.randrange(5)
            found += [f"--{name}={text(rng)}"] if form else [f"--{name}", text(rng)]
        return found + found[:1] * rng.randrange(2)

    def settings(self, rng: random.Random) -> str:
        """Flags of training, as far as the settings."""
        values = copy.deepcopy(self._settings)
        return outcome(
            self.arguments(rng, self._names),
            lambda: _nothing(settings_flags.from_flags(values)),
            flag_values=values,
            sections=settings_flags.help_sections(values),
            flagfile_folders=(launch_folder(),),
            before_parsing=lambda given: settings_flags.define_chosen(given, values),
            renamed=RENAMED,
        )

    def flagfile(self, rng: random.Random) -> str:
        path = self.folder / "some.flags"
        lines = "\n".join(self.arguments(rng, self._names)).encode("utf-8", "surrogateescape")
        path.write_bytes(damaged(lines, rng) if rng.random() < 0.7 else lines)
        values = copy.deepcopy(self._settings)
        return outcome(
            [f"--flagfile={path}"],
            lambda: _nothing(settings_flags.from_flags(values)),
            flag_values=values,
        )

    def plan(self, rng: random.Random) -> str:
        names = [name for name in plan._flags if name not in ("aot", "aot_programs", "algorithm")]
        return with_own_flags(plan, self.arguments(rng, names)[:2])

    def folders(self, rng: random.Random) -> str:
        """Programs that read a run, given other folders and files."""
        places = (self.folder, self.run / "checkpoints", self.run / "checkpoints" / "1", self.table)
        place = rng.choice((*places, self.folder / "absent", text(rng)))
        number = f"--checkpoint={text(rng)}" if rng.random() < 0.5 else "--checkpoint=1"
        if rng.random() < 0.5:
            return with_own_flags(inspect_run, [f"--run_dir={place}", number, "--json"])
        output = rng.choice((self.folder / "new", self.run, text(rng)))
        return with_own_flags(export, [f"--run_dir={place}", f"--output={output}", number])

    def run_files(self, rng: random.Random) -> str:
        """Readers of a run with one damaged file."""
        copied = self.folder / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        with_checkpoint = rng.random() < 0.15
        ignored = None if with_checkpoint else shutil.ignore_patterns("checkpoints")
        shutil.copytree(self.run, copied, ignore=ignored)
        files = sorted(path for path in copied.rglob("*") if path.is_file())
        file = rng.choice(files)
        kind = rng.randrange(5)
        if kind == 0:
            file.unlink()
            if rng.random() < 0.5:
                file.mkdir()
        elif kind < 3 and file.suffix in (".json", ".jsonl"):
            rows = [changed(json.loads(row), rng) for row in _json_texts(file)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))
        readers: tuple[Callable[[], object], ...] = (
            lambda: inspect_run.summary(copied),
            lambda: inspect_run.summary(copied, as_json=True, with_arrays=True),
            lambda: build.settings_of(directory.open_for_reading(copied)),
            lambda: run_log.improvements(copied),
            lambda: run_log.common_errors(copied, 5),
            lambda: _resume(copied),
        )
        reader = rng.choice(readers)
        return outcome([], lambda: _nothing(reader()), flag_values=flags.FlagValues())

    def tables(self, rng: random.Random) -> str:
        path = self.folder / rng.choice(("t.csv", "t.tsv", "t.json", "t.jsonl", "t.arff", "t"))
        path.write_bytes(damaged(self.table.read_bytes(), rng))
        target = rng.choice((None, "label", "first", "absent", text(rng)))
        return outcome(
            [],
            lambda: _nothing(load_dataset(str(path), target=target)),
            flag_values=flags.FlagValues(),
        )


def _nothing(result: object) -> None:
    """The exit code of a program that only had to come to an end."""
    del result


def _json_texts(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]


def _resume(path: Path) -> None:
    """Opens a run as training does, and cuts it back to its checkpoint."""
    config = build.Config.from_dict({"dataset": "toy", "model": "tiny"}).to_dict()
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        _ = run.finished
        run.cut_back(update=0, env_step=4, best=None)


CASES = {
    "settings": 400,
    "flagfile": 150,
    "plan": 50,
    "folders": 80,
    "run_files": 220,
    "tables": 100,
}


def failures(folder: Path, kind: str, cases: int, seed: int) -> list[str]:
    """The cases of a kind that ended otherwise than in one line, each with its seed."""
    fuzz, found = Fuzz(folder), []
    working_folder = os.getcwd()
    for number in range(cases):
        wrong = getattr(fuzz, kind)(random.Random(f"{seed} {kind} {number}"))
        os.chdir(working_folder)
        if wrong:
            found.append(f"seed {seed}, {kind} {number}: {wrong}")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, kind):
    # A name that is no path of its own may become a folder's: nothing may be left in this one.
    monkeypatch.chdir(tmp_path)
    ENDS.clear()
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        found = failures(tmp_path, kind, CASES[kind], seed=17)
    finally:
        logging.getLogger("absl").setLevel(logging.WARNING)
    assert ENDS[2] >= CASES[kind] // 10  # much of it is refused
    assert not found, "\n\n".join([f"{len(found)} of {CASES[kind]}", *found[:5]])


if __name__ == "__main__":
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            os.chdir(temporary)
            wrong = failures(Path(temporary), name, int(sys.argv[1]), int(sys.argv[2]))
            print(f"{name}: {len(wrong)} of {sys.argv[1]} cases", *wrong[:20], sep="\n")
