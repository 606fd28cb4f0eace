"""Two processes as two hosts: one model, one run directory, environments split between them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from env.base import State, Step, UsageError
from etpo_jax.devices import hosts

ROOT = pathlib.Path(__file__).parents[3]
SMALL = (
    "--flagfile=launch/tiny.flags",
    "--num_envs=4",
    "--minibatch_size=4",
    "--gradient_steps_per_update=2",
    "--max_new_tokens=16",
    "--max_prompt_length=96",
    "--dataset=toy",
)


def start(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "etpo_jax.train", *SMALL, *flags],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu"} | os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start_two(*flags):
    address = free_address()
    return [start(*flags, f"--hosts={address},2,{index}") for index in range(2)]


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_hosts_do_what_one_does_and_one_goes_on_where_two_stopped(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone_process = start(f"--run_dir={alone}", "--num_env_steps=16")
    first, second = finish(*start_two(f"--run_dir={together}", "--num_env_steps=12"))
    finish(alone_process)
    # The first host alone speaks and writes.
    assert "best_code.py" in first
    assert "step" not in second
    assert len(json.loads((together / "versions.json").read_text())["devices"]) == 2
    (resumed,) = finish(start(f"--run_dir={together}", "--num_env_steps=16"))
    assert "Resuming" in resumed
    names = ("env_step", "reward_mean", "entropy", "critic_loss", "policy_grad_norm")
    for one, other in zip(rows(alone), rows(together), strict=True):
        # Two devices add in another order.
        np.testing.assert_allclose(
            [one[name] for name in names], [other[name] for name in names], rtol=1e-3, atol=1e-6
        )
    actions = [
        [json.loads(line)["action"] for line in (path / "episodes.jsonl").read_text().splitlines()]
        for path in (alone, together)
    ]
    assert actions[0] == actions[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1:1", "must be auto, .* or HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1:1,2", "must be auto, .* or HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1:1,2,one", "must be auto, .* or HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1:1,2,2", "INDEX must be below COUNT"),
    ],
)
def test_half_an_address_is_refused(text, message):
    with pytest.raises(UsageError, match=f"--hosts={text}: {message}"):
        hosts.initialize(text)


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_waits_in_vain_for_the_other_one_ends_with_one_line(index):
    text = f"{free_address()},2,{index}"
    program = (
        "from etpo_jax.devices import hosts\n"
        f"hosts._JOIN_S = 2.0\nhosts.initialize({text!r})\nprint('joined')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu"} | os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = f"error: --hosts={text}: not all hosts have joined within 2 s: start them all\n"
    assert (result.returncode, result.stdout, result.stderr) == (75, "", expected)


def test_a_step_survives_the_way_between_hosts():
    for following in (None, State(2, {"error": "E", "body": ["x", 1]})):
        step = Step(0.5, following, "problem", {"split_scores": [0.25, 0.75], "wall_s": 1.5})
        assert Step.from_json(json.loads(json.dumps(step.to_json()))) == step
