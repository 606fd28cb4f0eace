"""The client against a loopback server: what it sends, what it tries again and what it gives up."""

import email.utils
import json
import time

import pytest

from env.base import UsageError
from etpo_jax.acting.chat_endpoint import ChatEndpoint
from tests.etpo_jax.acting.chat_server import ChatServer

BUSY = (429, {"Retry-After": "7"}, '{"error": {"message": "slow down"}}')
BROKEN = (503, {}, "upstream is gone")


@pytest.fixture
def server():
    def shout(request):
        return request["messages"][-1]["content"].upper()

    with ChatServer(shout) as server:
        yield server


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def endpoint(server, pauses):
    return ChatEndpoint(
        server.url, "a-model", key="secret", options={"temperature": 0.5}, sleep=pauses.append
    )


def test_answers_come_in_the_order_of_the_prompts_with_what_they_cost(server, endpoint):
    prompts = [f"prompt {index}" for index in range(20)]
    answers = endpoint.ask("shout", prompts)
    assert [answer.text for answer in answers] == [prompt.upper() for prompt in prompts]
    assert {(answer.prompt_tokens, answer.completion_tokens) for answer in answers} == {(2, 2)}
    assert len(server.requests) == 20


def test_a_request_names_the_model_and_carries_instructions_options_and_key(server, endpoint):
    endpoint.ask("shout", ["hello"])
    assert server.requests == [
        {
            "model": "a-model",
            "messages": [
                {"role": "system", "content": "shout"},
                {"role": "user", "content": "hello"},
            ],
            "temperature": 0.5,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_without_a_key_none_is_sent_and_an_option_of_none_is_left_out(server):
    ChatEndpoint(server.url + "/", "m", options={"max_tokens": None}).ask("", ["a"])
    assert "Authorization" not in server.headers[0]
    assert "max_tokens" not in server.requests[0]


@pytest.mark.parametrize(
    "fault", [BUSY, BROKEN, "cut", (200, {}, "<html>"), (200, {}, '{"choices": []}')]
)
def test_what_may_pass_is_tried_again(server, endpoint, pauses, fault):
    server.faults = [fault, fault]
    assert endpoint.ask("", ["a"])[0].text == "A"
    assert len(server.requests) == 3
    assert len(pauses) == 2
    if fault == BUSY:
        assert pauses == [7.0, 7.0]
    else:
        assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0


@pytest.mark.parametrize(("seconds", "shortest", "longest"), [(30, 20.0, 30.0), (-30, 0.5, 1.0)])
def test_another_try_may_have_a_date(server, endpoint, pauses, seconds, shortest, longest):
    date = email.utils.formatdate(time.time() + seconds, usegmt=True)
    server.faults = [(503, {"Retry-After": date}, ""), (503, {"Retry-After": "soon"}, "")]
    endpoint.ask("", ["a"])
    assert shortest <= pauses[0] <= longest
    assert 1.0 <= pauses[1] <= 2.0


def test_a_server_that_stays_busy_ends_with_one_line(server, pauses):
    endpoint = ChatEndpoint(server.url, "m", num_retries=2, sleep=pauses.append)
    server.faults = [BUSY] * 3
    with pytest.raises(UsageError, match=r"429 .*slow down, also after 2 retries") as caught:
        endpoint.ask("", ["a"])
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_is_refused_for_good_is_not_tried_again(server, endpoint, pauses, status):
    server.faults = [(status, {}, '{"error": {"message": "no\\nsuch model"}}')]
    with pytest.raises(UsageError, match=rf"refused: {status} .*no such model"):
        endpoint.ask("", ["a"])
    assert not pauses
    assert len(server.requests) == 1


def test_nobody_there_is_told(pauses):
    with ChatServer(str) as gone:
        url = gone.url
    endpoint = ChatEndpoint(url, "m", num_retries=1, sleep=pauses.append)
    with pytest.raises(UsageError, match=r"no answer \(.*refused"):
        endpoint.ask("", ["a"])


def test_an_answer_of_null_is_empty(server, endpoint):
    message = {"role": "assistant", "content": None}
    server.faults = [(200, {}, json.dumps({"choices": [{"message": message}]}))]
    (answer,) = endpoint.ask("", ["a"])
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("", 0, 0)


def test_a_url_must_be_one():
    with pytest.raises(UsageError, match=r"--endpoint=api\.openai\.com: must start with http"):
        ChatEndpoint("api.openai.com", "m")
