"""Flags of execution reach the executor, and what rewards depend on reaches their cache."""

import contextlib
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from env.base import UsageError
from env.datasets import Dataset, load_dataset
from env.executor import Limits
from etpo_jax import build
from etpo_jax.acting.rollout import Prompt
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.repository import local_folder


class RecordingExecutor:
    """Takes the place of an executor; starts nothing."""

    isolation = "seccomp"

    def __init__(self, dataset, **options):
        self.options = options
        self.is_closed = False
        started.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True


started = []


@pytest.fixture
def executors(monkeypatch):
    """The executors that a test has started; substitutes take their place."""
    for name in ("CodeExecutor", "RayExecutor"):
        monkeypatch.setattr(build, name, type(name, (RecordingExecutor,), {}))
    started.clear()
    return started


@pytest.fixture
def make(executors, tmp_path):
    def make(**settings):
        settings = {"reward_cache": str(tmp_path), **settings}
        return build._make_executor(
            Config.from_dict(settings), load_dataset("balance_scale"), opened
        )

    with contextlib.ExitStack() as opened:
        yield make


def test_limits_reach_the_executor(make):
    executor = make(
        reward_cache="off",
        executor="local:workers=3",
        limits="timeout_s=4,cpu_s=3,memory_mb=64, max_threads=5,max_output_kb=6",
        libraries="absl.flags, tqdm",
        isolation="seccomp",
    )
    options = executor.options
    assert options.pop("metric").name == "roc_auc"
    assert options == {
        "num_workers": 3,
        "limits": Limits(4.0, 3, 64 * 2**20, 5, 6 * 2**10),
        "libraries": ["absl.flags", "tqdm"],
        "holdout": False,
        "num_splits": 5,
        "isolation": "seccomp",
    }


def test_programs_are_executed_elsewhere_by_flag(make):
    assert type(make(reward_cache="off")).__name__ == "CodeExecutor"
    ray = "ray:address=head:6379,actors=4,workers=2"
    executor = make(reward_cache="off", executor=ray, limits="cpu_s=2")
    assert type(executor).__name__ == "RayExecutor"
    assert executor.options.pop("metric").name == "roc_auc"
    assert executor.options == {
        "address": "head:6379",
        "num_actors": 4,
        "num_workers": 2,
        "limits": Limits(cpu_s=2),
        "libraries": [],
        "num_splits": 5,
        "isolation": "auto",
    }


@pytest.mark.parametrize(
    ("settings", "has_own_rewards"),
    [
        ({"limits": "memory_mb=64"}, True),
        ({"limits": "max_threads=1"}, True),
        ({"limits": "max_output_kb=1"}, True),
        ({"libraries": "tqdm"}, True),
        ({"executor": "local:workers=1"}, False),
        ({"limits": "timeout_s=1"}, False),
        ({"limits": "cpu_s=1"}, False),
    ],
    ids=lambda value: str(*value.values()) if isinstance(value, dict) else "",
)
def test_limits_that_change_rewards_have_rewards_of_their_own(
    make, tmp_path, settings, has_own_rewards
):
    make()
    make(**settings)
    assert len(list(tmp_path.iterdir())) == 1 + has_own_rewards


@pytest.mark.parametrize("attention", ["cudnn", "splash"])
def test_kernels_of_other_devices_are_refused(attention):
    config = Config.from_dict({"attention": attention})
    with pytest.raises(UsageError, match=f"--attention={attention}: needs a.*devices are cpu"):
        build.load_language(config, build_mesh())


def test_float32_that_is_not_float32_is_told():
    config = Config.from_dict({})
    assert build.precision_note(config, "cpu") == ""
    assert "TF32" in build.precision_note(config, "gpu")
    assert "bfloat16" in build.precision_note(config, "tpu")
    for dtype in ("bfloat16", "float32:precision=highest", "float32:precision=high"):
        assert build.precision_note(config.replace(dtype=dtype), "gpu") == ""


def test_an_actor_draws_no_padding_of_the_vocabulary(tmp_path):
    """The rows behind the tokens of this model would otherwise be its most likely tokens."""
    model, params = models.load("tiny")
    rng = np.random.default_rng(0)
    params["embedder"]["embedding"] = jnp.pad(params["embedder"]["embedding"], ((0, 76), (0, 0)))
    padding = jnp.asarray(20 * rng.normal(size=(model.config.hidden_size, 76)), jnp.float32)
    params["lm_head"]["kernel"] = jnp.concatenate([params["lm_head"]["kernel"], padding], axis=1)
    models.save(tmp_path, dataclasses.replace(model.config, vocab_size=1100), params)
    for path in local_folder("tiny").glob("*token*.json"):
        shutil.copy(path, tmp_path)
    settings = {"model": str(tmp_path), "max_new_tokens": 8, "support_threshold": 0.0}
    config, mesh = Config.from_dict(settings), build_mesh()
    language = build.load_language(config, mesh)
    actor = build.make_actor(config, language, mesh)
    tokens = np.array(language.tokenizer.encode("import numpy"), np.int32)
    prompts = [Prompt("import numpy", tokens)] * 8
    actions = actor.act(actor.weights({}), prompts, jax.random.key(0))
    assert max(max(action) for action in actions.tokens) < 1024


def test_the_holdout_is_scored_on_its_own_rows_and_remembered_apart(tmp_path):
    rng = np.random.default_rng(0)

    def table(num_rows, sign, holdout=None):
        labels = np.arange(num_rows) % 2
        features = sign * labels[:, None] + rng.normal(size=(num_rows, 1))
        return Dataset("mine", "Mine", features, labels, ("a",), holdout=holdout)

    # What the visible rows teach is wrong for the holdout.
    dataset = table(200, 2.0, table(50, -2.0))
    config = Config.from_dict({"reward_cache": str(tmp_path), "executor": "local:workers=1"})
    body = "from sklearn.linear_model import LogisticRegression\n"
    body += "    model = LogisticRegression().fit(x_train, y_train)"
    with contextlib.ExitStack() as opened:
        (reward,) = build._make_executor(config, dataset, opened).run([body])
    for is_remembered in (False, True):
        with build.open_holdout(config, dataset) as executor:
            (held_out,) = executor.run([body])
        assert held_out.cached == is_remembered
        assert held_out.reward < 0.2 < 0.8 < reward.reward
        low, high = held_out.interval
        assert low < held_out.reward < high


def test_the_executor_of_a_task_is_closed_with_it(executors):
    with build.open_task(Config.from_dict({"reward_cache": "off"})) as task:
        (executor,) = executors
        assert task.name == "balance_scale"
        assert not executor.is_closed
    assert executor.is_closed


@pytest.mark.parametrize("part", ["reward_cache.reward_context", "CachedExecutor", "CodeTask"])
def test_the_executor_is_closed_if_a_later_part_cannot_be_made(
    executors, monkeypatch, tmp_path, part
):
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(f"etpo_jax.build.{part}", fail)
    config = Config.from_dict({"reward_cache": str(tmp_path)})
    with pytest.raises(OSError, match="no space left"), build.open_task(config):
        pytest.fail("a task was made")
    (executor,) = executors
    assert executor.is_closed


def test_form_and_kind_of_target_reach_the_table(tmp_path):
    rows = "".join(f"{color},{i},{i / 7}\n" for i, color in enumerate(["red", "blue"] * 30))
    (tmp_path / "mine.csv").write_text("color,size,price\n" + rows)
    name = str(tmp_path / "mine.csv")
    settings = {"dataset": name, "target": "price", "metric": "rmse", "table_form": "frame"}
    dataset = build.open_dataset(Config.from_dict(settings).task, name)
    assert dataset.is_regression
    assert dataset.frame.dtypes.astype(str).to_dict() == {"color": "object", "size": "int64"}
    array = build.open_dataset(Config.from_dict({**settings, "table_form": "array"}).task, name)
    assert array.frame is None
    assert len({array.checksum, dataset.checksum}) == 2


def test_a_library_that_is_not_installed_is_named_before_anything_is_started():
    config = Config.from_dict({"libraries": "math,nosuchmodule.part"})
    with (
        pytest.raises(
            UsageError, match=r"^--libraries=nosuchmodule\.part: there is no such module"
        ),
        build.open_task(config),
    ):
        pass
