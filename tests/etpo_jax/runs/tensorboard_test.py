"""TensorBoard's events are the rows of the run, read back here by TensorBoard's own format."""

import math
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from etpo_jax.runs import directory
from etpo_jax.runs.tensorboard import TensorBoard
from etpo_jax.runs.tracked_run import BestProgram, TrackedRun
from tests.etpo_jax.runs import tracked_runs
from tests.etpo_jax.runs.events import scalars, values


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return tracked_runs.begin(tmp_path)


def texts(run_path: Path) -> dict[tuple[int, str], str]:
    return {
        (step, value.tag.removesuffix("/text_summary")): value.tensor.string_val[0].decode()
        for step, value in values(run_path)
        if value.metadata.plugin_data.plugin_name == "text"
    }


def test_numbers_of_a_row_become_scalars_at_once(run: TrackedRun) -> None:
    events = TensorBoard(run)
    row = {"update": 3, "loss": np.float32(0.5), "kl": np.array(2.0), "note": "text", "none": None}
    events.write(row, [])
    assert scalars(run.path) == [(3, "loss", 0.5), (3, "kl", 2.0)]
    events.write({"update": 4, "loss": math.nan}, [])
    assert math.isnan(scalars(run.path)[-1][2])
    events.close(is_finished=False)


def test_settings_samples_and_the_best_program_are_shown(run: TrackedRun) -> None:
    events = TensorBoard(run)
    events.write({"update": 2, "loss": 0.5}, [[1, -1.0, "Error: a | b\n<c>", "return 1", "p"]])
    events.write_best(BestProgram("a = 1\n", {"reward": 0.5, "env_step": 4}), 2)
    events.close(is_finished=True)
    found = texts(run.path)
    assert "- run: etpo on toy, seed 3\n- git_commit: c0ffee" in found[0, "run"]
    head, _, row = found[2, "samples"].split("\n")
    assert head == "env_step|reward|error|action|prompt"
    assert row == "1|-1.0000|<pre>Error: a &#124; b<br>&lt;c&gt;</pre>|return 1|p"
    assert found[2, "best program"] == "reward 0.5, env_step 4\n\n    a = 1"
    plugins = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for _, value in values(run.path)
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    kinds = ["experiment", "session_start_info", "session_end_info"]
    assert [plugin.WhichOneof("data") for plugin in plugins] == kinds
    settings = plugins[1].session_start_info.hparams
    assert settings["num_envs"].number_value == 2
    assert settings["dataset"].string_value == "toy"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named(run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(path: str) -> IO[bytes]:
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")

    events = TensorBoard(run)
    events._writer.close()
    events._writer._writer = open_full("")
    with pytest.raises(OSError, match="No space left") as caught:
        events.write({"update": 1, "loss": 0.5}, [])
    assert caught.value.filename == str(run.path / directory.TENSORBOARD)
    events.close(is_finished=False)
    monkeypatch.setattr("tensorboardX.record_writer.open_file", open_full)
    with pytest.raises(OSError, match="No space left"):
        TensorBoard(run)
