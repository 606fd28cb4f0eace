"""What a run says of itself before its first update."""

import numpy as np

from env.tables.table import Dataset
from env.tasks.code_task import CodeTask
from etpo_jax import startup
from etpo_jax.acting.formats import Prompt
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh


class _Executor:
    isolation = "landlock"

    def close(self):
        pass


def test_a_run_says_what_it_runs_on_and_with():
    config = Config.from_dict({"executor": "local:workers=3", "run_dir": "runs/a"})
    table = Dataset("mine", "Mine", np.zeros((4, 2)), np.array([0, 1, 0, 0]), ("a", "b"))
    found = dict(startup.about_task(config, CodeTask(table, _Executor()), build_mesh()))
    assert found["wall"] == "landlock, 3 programs at once"
    assert found["table"] == "mine, 4 rows, 2 features, 2 classes of 3, 1 rows"
    assert found["devices"].endswith(" x cpu, mesh fsdp:1, tensor:1")
    assert found["steps"].startswith("480 environment steps = 30 updates of 16 actions, ")
    assert startup.title(config)[1] == "etpo on balance_scale, seed 0, in runs/a"


def test_a_long_prompt_is_shortened():
    text = "\n".join(f"line {number} {'x' * 100}" for number in range(20))
    name, shown = startup.about_prompt(Prompt(text, np.zeros(7, np.int32)))
    lines = shown.split("\n")
    assert (name, lines[0]) == ("prompt", "7 tokens")
    assert [line.split(" x")[0] for line in lines[1:]] == [
        *(f"| line {number}" for number in range(8)),
        "| ... 8 more lines ...",
        *(f"| line {number}" for number in range(16, 20)),
    ]
    assert max(map(len, lines)) == 90


def test_a_model_elsewhere_has_no_tokens():
    assert startup.about_prompt(Prompt("ask", np.zeros(0, np.int32)))[1] == "the first one\n| ask"
