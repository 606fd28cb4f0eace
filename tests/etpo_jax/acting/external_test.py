"""Reflection by a model behind an endpoint, as a run of its own and as a cell's program."""

import json
import re

import pytest

from env.base import UsageError
from env.tasks.toy import ToyTask
from etpo_jax import plan
from etpo_jax.acting.external import ExternalModel, make_endpoint
from etpo_jax.config import Config
from tests.etpo_jax.acting.chat_server import ChatServer
from tests.etpo_jax.train_test import column, run

GOOD = "```python\nfrom sklearn.naive_bayes import GaussianNB\nmodel = GaussianNB()\n"
GOOD += "model.fit(x_train, y_train)\n```"
PRICES = ("--endpoint_prompt_price=1000", "--endpoint_completion_price=2000")


def reflect(request):
    """Wrong at the first prompt, right at a reflective one."""
    is_reflective = "An error was reported" in request["messages"][-1]["content"]
    return GOOD if is_reflective else "model = Unknown()"


@pytest.fixture
def server():
    with ChatServer(reflect) as server:
        yield server


def arguments(server, folder, *more):
    return (
        *("--algorithm=reflection", f"--endpoint={server.url}", "--endpoint_model=m"),
        *("--num_envs=4", "--num_workers=1", "--reward_cache=off", "--max_new_tokens=300"),
        *(f"--run_dir={folder}", *more),
    )


def test_an_external_model_reflects_is_paid_and_goes_on_where_its_budget_ended(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOME_KEY", "secret")
    folder = tmp_path / "run"
    more = (*PRICES, "--endpoint_key_variable=SOME_KEY", "--num_env_steps=12")
    first = run(*arguments(server, folder, *more, "--endpoint_budget=0.0001"))
    assert first.returncode == 2
    assert "USD are spent; a larger one goes on" in first.stderr
    assert column(folder / "metrics.jsonl", "env_step") == [4]

    second = run(*arguments(server, folder, *more))
    assert second.returncode == 0, second.stderr
    assert "Resuming" in second.stdout
    rewards = column(folder / "episodes.jsonl", "reward")
    assert rewards[:4] == [-1.0] * 4
    assert min(rewards[4:8]) > 0.5
    assert len(server.requests) == 12
    assert {request["max_tokens"] for request in server.requests} == {300}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    prompt, completion = (rows[-1][f"endpoint_{n}_tokens"] for n in ("prompt", "completion"))
    assert rows[0]["endpoint_cost_usd"] < rows[-1]["endpoint_cost_usd"]
    assert rows[-1]["endpoint_cost_usd"] == pytest.approx((prompt * 1000 + completion * 2000) / 1e6)
    assert rows[-1]["kl_to_reference"] is None
    assert "secret" not in (folder / "config.json").read_text()
    assert "secret" not in second.stdout + second.stderr
    assert (folder / "report.html").exists()
    assert "GaussianNB" in (folder / "best_code.py").read_text()
    evaluated = run(f"--run_dir={folder}", program="evaluate")
    assert evaluated.returncode == 2
    assert "its model is behind an endpoint" in evaluated.stderr


def test_a_wrong_key_ends_with_one_line(server, tmp_path):
    server.faults = [(401, {}, '{"error": {"message": "Incorrect API key"}}')] * 4
    done = run(*arguments(server, tmp_path / "run", "--num_env_steps=4"))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("refused: 401 Unauthorized: Incorrect API key")


SETTINGS = {"algorithm": "reflection", "endpoint": "http://127.0.0.1:1", "endpoint_model": "m"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "etpo"}, "--algorithm=etpo: --endpoint plays reflection only"),
        ({"endpoint_model": ""}, "needs --endpoint_model"),
        ({"support_threshold": 0.001}, "--support_threshold=0.001: must be 0 with --endpoint"),
        ({"endpoint_options": "[1]"}, "--endpoint_options=[1]: must be a JSON object"),
        ({"endpoint_options": "{"}, "--endpoint_options={: must be a JSON object"),
        ({"endpoint_budget": 1.0}, "needs --endpoint_prompt_price"),
    ],
)
def test_what_an_endpoint_cannot_do_is_said(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config.from_dict({**SETTINGS, **values})


def test_a_task_that_is_no_chat_is_refused():
    config = Config.from_dict({**SETTINGS, "dataset": "toy"})
    with pytest.raises(UsageError, match="--dataset=toy: this task cannot be asked"):
        ExternalModel(make_endpoint(config, {}), ToyTask(max_steps=2), config)


def test_a_plan_says_that_no_device_is_needed():
    assert "m behind http://127.0.0.1:1: no device is needed" in plan.describe(
        Config.from_dict(SETTINGS)
    )


def test_options_reach_the_requests(server):
    values = {
        **SETTINGS,
        "endpoint": server.url,
        "endpoint_options": '{"max_tokens": null, "max_completion_tokens": 512}',
        "temperature": 0.5,
        "top_k": 50,
    }
    make_endpoint(Config.from_dict(values), {}).ask("", ["a"])
    (request,) = server.requests
    assert request["max_completion_tokens"] == 512
    assert not {"max_tokens", "top_p"} & set(request)
    assert (request["temperature"], request["top_k"]) == (0.5, 50)
