"""A model behind an endpoint: its requests and failures, its options, and runs that it plays."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from env.base import UsageError
from env.tasks.toy import ToyTask
from etpo_jax import plan
from etpo_jax.acting.external import EndpointOptions, ExternalModel
from etpo_jax.acting.rollout import Prompt
from etpo_jax.config import Config, SamplingConfig
from tests.etpo_jax.acting.chat_server import ChatServer
from tests.etpo_jax.train_test import column, run

GOOD = "```python\nfrom sklearn.naive_bayes import GaussianNB\nmodel = GaussianNB()\n"
GOOD += "model.fit(x_train, y_train)\n```"
PRICES = {"prompt_price": 1000, "completion_price": 2000}
BUSY = (429, {"retry-after-ms": "1"}, '{"error": {"message": "slow down"}}')
BROKEN = (503, {"retry-after-ms": "1"}, "upstream is gone")


class Echo(ToyTask):
    """A task that can be asked of a chat model; the action is the answer."""

    instructions = "shout"

    def action_of(self, answer):
        return answer


def shout(request):
    return request["messages"][-1]["content"].upper()


def reflect(request):
    """Answers wrongly to the first prompt and rightly to a reflective one."""
    is_reflective = "An error was reported" in request["messages"][-1]["content"]
    return GOOD if is_reflective else "model = Unknown()"


@pytest.fixture(params=[shout])
def server(request):
    pytest.importorskip("openai")
    with ChatServer(request.param) as server:
        yield server


def external(url, *, sampling=None, **options):
    return ExternalModel(
        Echo(max_steps=2),
        url=url,
        model="a-model",
        options=EndpointOptions.parse(json.dumps(options)),
        sampling=sampling or SamplingConfig(),
    )


def ask(model, *prompts):
    return model.act(None, [Prompt(prompt, np.zeros(0)) for prompt in prompts], jax.random.key(0))


def test_answers_come_in_the_order_of_the_prompts_and_are_billed(server):
    model = external(server.url, budget={"prompt_price": 1.0, "completion_price": 2.0})
    prompts = [f"prompt {index}" for index in range(20)]
    actions = ask(model, *prompts)
    assert actions.prompts == prompts
    assert actions.texts == [prompt.upper() for prompt in prompts]
    assert actions.num_tokens == 40
    assert list(model.usage().values()) == pytest.approx([40, 40, 120e-6])
    assert len(server.requests) == 20


def test_a_request_names_the_model_and_carries_instructions_options_and_key(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    sampling = SamplingConfig(temperature=0.5, top_k=50)
    more = {"max_tokens": None, "max_completion_tokens": 512}
    ask(external(server.url, sampling=sampling, client={"key_variable": "SOME_KEY"}, **more), "a")
    assert server.requests == [
        {
            "model": "a-model",
            "messages": [
                {"role": "system", "content": "shout"},
                {"role": "user", "content": "a"},
            ],
            "temperature": 0.5,
            "top_k": 50,
            "max_completion_tokens": 512,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_the_key_for_one_server_does_not_reach_another(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ask(external(server.url + "/", client={"key_variable": "NOT_SET"}), "a")
    assert server.headers[0]["Authorization"] == "Bearer none"


@pytest.mark.parametrize("fault", [BUSY, BROKEN, "cut"])
def test_what_may_pass_is_tried_again(server, fault):
    server.faults = [fault, fault]
    assert ask(external(server.url), "a").texts == ["A"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "num_requests", "message"),
    [
        (BUSY, 3, "429 .*slow down"),
        (BROKEN, 3, "503|upstream is gone"),
        ((401, {}, '{"error": {"message": "no\\nsuch key"}}'), 1, "401 .*such key"),
        ((404, {}, '{"error": {"message": "no such model"}}'), 1, "404 .*no such model"),
        ((200, {}, "<html>"), 1, "no chat completion: '<html>'"),
        ((200, {}, '{"choices": []}'), 1, "no chat completion"),
    ],
)
def test_what_does_not_pass_ends_with_one_line(server, fault, num_requests, message):
    server.faults = [fault] * 3
    with pytest.raises(UsageError, match=message) as caught:
        ask(external(server.url, client={"max_retries": 2}), "a")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == num_requests


def test_nobody_there_is_told(server):
    with ChatServer(str) as gone:
        url = gone.url
    with pytest.raises(UsageError, match="Connection refused"):
        ask(external(url, client={"max_retries": 0}), "a")


def test_an_answer_of_null_is_empty(server):
    message = {"role": "assistant", "content": None}
    server.faults = [(200, {}, json.dumps({"choices": [{"message": message}]}))]
    model = external(server.url)
    assert ask(model, "a").texts == [""]
    assert model.usage()["endpoint_prompt_tokens"] == 0


def test_what_is_missing_is_told(monkeypatch):
    with pytest.raises(UsageError, match=r"--endpoint=api\.openai\.com: must start with http"):
        external("api.openai.com")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install openai$"):
        external("http://127.0.0.1:1")


def test_options_have_sections_and_members_of_requests():
    assert EndpointOptions.parse("") == EndpointOptions()
    text = '{"seed": 1, "client": {"timeout_s": 9}, "budget": {"usd": 5, "prompt_price": 30}}'
    assert EndpointOptions.parse(text) == EndpointOptions(
        request={"seed": 1}, timeout_s=9, usd=5, prompt_price=30
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "--endpoint_options=[1]: must be a JSON object"),
        ("{", "--endpoint_options={: must be a JSON object"),
        ('{"client": 3}', "client=3: must be a JSON object with members of timeout_s, max_retries"),
        ('{"client": {"timeout": 3}}', "must be a JSON object with members of timeout_s"),
        ('{"client": {"timeout_s": 0}}', "timeout_s=0: must be a number of at least 0.001"),
        ('{"client": {"timeout_s": NaN}}', "timeout_s=nan: must be a number"),
        ('{"client": {"max_retries": 1.5}}', "max_retries=1.5: must be a whole number"),
        ('{"client": {"concurrency": true}}', "concurrency=True: must be a whole number of at"),
        ('{"client": {"key_variable": 1}}', "key_variable=1: must be a string"),
        ('{"budget": {"prompt_price": -1}}', "prompt_price=-1: must be a number of at least 0"),
        ('{"budget": {"usd": 5}}', "usd=5: needs prompt_price or completion_price"),
    ],
)
def test_bad_options_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EndpointOptions.parse(text)


def arguments(server, folder, *more):
    return (
        *("--algorithm=reflection", f"--endpoint={server.url}", "--model=m"),
        *("--num_envs=4", "--executor=local:workers=1", "--reward_cache=off"),
        *("--max_new_tokens=300", f"--run_dir={folder}", *more),
    )


@pytest.mark.parametrize("server", [reflect], indirect=True)
def test_an_external_model_reflects_is_paid_and_goes_on_where_its_budget_ended(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOME_KEY", "secret")
    folder = tmp_path / "run"

    def play(**budget):
        options = {"client": {"key_variable": "SOME_KEY"}, "budget": {**PRICES, **budget}}
        more = ("--num_env_steps=12", f"--endpoint_options={json.dumps(options)}")
        return run(*arguments(server, folder, *more))

    first = play(usd=0.0001)
    assert first.returncode == 2
    assert "USD are spent; the same command with a larger budget resumes" in first.stderr
    assert column(folder / "metrics.jsonl", "env_step") == [4]

    second = play()
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
    assert "the run's model is behind an endpoint" in evaluated.stderr


@pytest.mark.parametrize("server", [reflect], indirect=True)
def test_a_wrong_key_ends_with_one_line(server, tmp_path):
    server.faults = [(401, {}, '{"error": {"message": "Incorrect API key"}}')] * 4
    done = run(*arguments(server, tmp_path / "run", "--num_env_steps=4"))
    assert done.returncode == 2
    assert re.search(r"--endpoint=.*401.*Incorrect API key.*resumes the run$", done.stderr.strip())


SETTINGS = {"algorithm": "reflection", "endpoint": "http://127.0.0.1:1", "model": "m"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "etpo"}, "--endpoint: --algorithm=etpo does not read it, reflection does"),
        ({"model": "tiny"}, "needs --model, the name of the model there"),
        ({"endpoint": "", "endpoint_options": "{}"}, "--endpoint_options: needs --endpoint"),
        ({"endpoint_options": '{"budget": {"usd": 1}}'}, "usd=1: needs prompt_price or"),
    ],
)
def test_what_an_endpoint_cannot_do_is_said(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config.from_dict({**SETTINGS, **values})


def test_a_task_that_is_no_chat_is_refused():
    with pytest.raises(UsageError, match="a chat model cannot be asked about the task toy"):
        ExternalModel(
            ToyTask(max_steps=2),
            url="http://127.0.0.1:1",
            model="m",
            options=EndpointOptions(),
            sampling=SamplingConfig(),
        )


def test_a_plan_says_that_no_device_is_needed():
    assert "m behind http://127.0.0.1:1: no device is needed" in plan.describe(
        Config.from_dict(SETTINGS)
    )
