"""inspect_run shows a checkpoint from its metadata and reports damage in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from env.base import UsageError
from etpo_jax import inspect_run
from etpo_jax.runs.directory import Best, RunDirectory
from etpo_jax.runs.steps import committed_steps

_ROOT = Path(__file__).resolve().parents[2]
_BEST = Best(0.75, (0.7, 0.8), 3, "toy", 0, "x = 1", "x = 1\n")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 1 and 2 as the trainer makes them."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    kernel = jax.device_put(
        jnp.ones((4, 6), jnp.bfloat16), NamedSharding(mesh, PartitionSpec(None, ("fsdp", "tensor")))
    )
    state = {"policy": {"q": {"kernel": kernel}}, "step": jnp.zeros((), jnp.int32)}
    training = ocp.training
    with training.Checkpointer(
        str(folder),
        save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=training.preservation_policies.LatestN(2),
    ) as checkpointer:
        for step in (1, 2):
            checkpointer.save_checkpointables_async(
                step,
                {
                    "state": state,
                    "replay": {"tokens": np.zeros((3, 5), np.int32)},
                    "host": {"update": step, "recent": ["a", "b"], "best": None},
                },
            )
        checkpointer.wait()
    return folder


@pytest.fixture
def run_path(tmp_path: Path, numbered: Path) -> Path:
    path = tmp_path / "run"
    config = {"algorithm": "etpo", "dataset": "toy", "seed": 0, "num_env_steps": 10}
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        run.record(isolation="landlock")
        rows = [{"env_step": i, "reward": i / 10, "error": ""} for i in range(1, 6)]
        run.append_episodes(rows)
        run.append_metrics({"update": 1, "env_step": 5, "loss": float("nan")})
        run.write_best(_BEST)
        shutil.copytree(numbered, run.checkpoints_path)
    return path


def test_shapes_types_bytes_and_shardings(numbered: Path) -> None:
    checkpoint = inspect_run.read_checkpoint(numbered / "2")
    leaves = {leaf.path: leaf for tree in checkpoint.trees.values() for leaf in tree}
    kernel = leaves["policy/q/kernel"]
    assert (kernel.shape, kernel.dtype, kernel.num_bytes) == ((4, 6), "bfloat16", 48)
    assert kernel.sharding == "(None, fsdp+tensor) on fsdp:1 tensor:1"
    tokens = leaves["tokens"]
    assert (tokens.shape, tokens.dtype, tokens.num_bytes) == ((3, 5), "int32", 60)
    assert leaves["step"].sharding == "one device"
    assert (leaves["update"].shape, leaves["update"].dtype) == (None, "int")
    assert leaves["recent/1"].dtype == "str"
    assert set(checkpoint.trees) == {"state", "replay", "host"}
    files = [file for file in (numbered / "2").rglob("*") if file.is_file()]
    assert checkpoint.num_bytes_on_disk == sum(file.stat().st_size for file in files)


def test_a_run_in_words(run_path: Path) -> None:
    text = inspect_run.summary(run_path, with_arrays=True)
    for part in (
        "etpo on toy, seed 0",
        "not finished",
        "5 of 10 environment steps, 1 updates",
        "0.100 in the first fifth, 0.500 in the last",
        "0.7500 at environment step 3",
        "landlock",
        f"jax {jax.__version__}",
        "numbered checkpoints: 1, 2",
        f"checkpoint {run_path}/checkpoints/2, committed 20",
        "state: 2 arrays of 25 elements, 52 B",
        "policy/q/kernel  [4, 6]  bfloat16  48 B  (None, fsdp+tensor) on fsdp:1 tensor:1",
        "replay: 1 arrays of 15 elements, 60 B",
        "host: 3 numbers and texts, such as counters",
    ):
        assert part in text


def test_the_program_prints_json_that_a_standard_reader_takes(run_path: Path) -> None:
    command = [sys.executable, "-m", "etpo_jax.inspect_run", "--json", "--checkpoint=1"]
    done = subprocess.run(
        [*command, f"--run_dir={run_path}"], cwd=_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["checkpoint_steps"] == [1, 2]
    assert found["checkpoint"]["path"].endswith("/checkpoints/1")
    assert Best.from_json(found["run"]["best"]) == _BEST
    assert found["run"]["versions"]["isolation"] == "landlock"
    paths = [leaf["path"] for leaf in found["checkpoint"]["trees"]["state"]]
    assert paths == ["policy/q/kernel", "step"]


def test_a_run_without_checkpoints(run_path: Path) -> None:
    shutil.rmtree(run_path / "checkpoints")
    assert inspect_run.summary(run_path).endswith("no checkpoint is committed yet")
    with pytest.raises(UsageError, match=r"--checkpoint=1: .*/checkpoints holds none"):
        inspect_run.summary(run_path, 1)


def test_unfinished_saves_are_no_checkpoints(run_path: Path) -> None:
    checkpoints = run_path / "checkpoints"
    (checkpoints / "3.orbax-checkpoint-tmp").mkdir()
    (checkpoints / "4").mkdir()
    assert committed_steps(checkpoints) == [1, 2]


def test_folders_of_checkpoints_and_single_ones(numbered: Path) -> None:
    both = inspect_run.summary(numbered)
    assert "numbered checkpoints: 1, 2" in both
    assert f"checkpoint {numbered}/2," in both
    assert f"checkpoint {numbered}/1," in inspect_run.summary(numbered, 1)
    alone = inspect_run.summary(numbered / "1")
    assert "numbered" not in alone
    assert "policy/q/kernel" not in alone
    assert "policy/q/kernel" in inspect_run.summary(numbered / "1", with_arrays=True)


def test_the_text_fits_a_screen(run_path: Path) -> None:
    lines = inspect_run.summary(run_path).split("\n")
    assert len(lines) <= 24
    # A path is never broken.
    assert all(len(line) <= 80 or str(run_path) in line for line in lines)
    assert "replay: 1 arrays of 15 elements, 60 B" in lines
    assert "host: 3 numbers and texts, such as counters" in lines


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _truncate(path / "state" / "_METADATA"), "is damaged: 'state'"),
        (lambda path: (path / "state" / "_METADATA").unlink(), "is damaged: 'state'"),
        (lambda path: shutil.rmtree(path / "replay"), "is damaged: 'replay'"),
        (
            lambda path: (path / "_CHECKPOINT_METADATA").write_text('{"item_handlers": 3}'),
            "cannot be read",
        ),
        (lambda path: (path / "_CHECKPOINT_METADATA").unlink(), "holds neither a run nor"),
    ],
    ids=["torn", "lost", "missing", "wrong", "foreign"],
)
def test_damage_is_one_line(tmp_path: Path, numbered: Path, damage: Any, message: str) -> None:
    path = tmp_path / "copy"
    shutil.copytree(numbered / "2", path)
    damage(path)
    with pytest.raises(UsageError, match=message) as caught:
        inspect_run.summary(path)
    assert str(path) in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        inspect_run.summary(tmp_path / "absent")
    with pytest.raises(UsageError, match="neither a run nor an orbax checkpoint"):
        inspect_run.summary(tmp_path)
