"""A client of OpenAI-compatible chat endpoints: OpenAI's own, vLLM, SGLang, llama.cpp and others.

One POST to URL/chat/completions per prompt, several at a time. What a server may recover from (429,
5xx, a broken connection, no answer in time) is tried again after a growing pause; what it will not
(a wrong key, model or option) ends the run with one line.
"""

import concurrent.futures
import dataclasses
import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from env.base import UsageError

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})
_MAX_ERROR_CHARS = 300


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered, and the tokens that are billed."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class _RecoverableError(Exception):
    """Worth another try, not before `pause_s` if the server said so."""

    def __init__(self, reason: str, pause_s: float | None = None):
        super().__init__(reason)
        self.pause_s = pause_s


class ChatEndpoint:
    """Asks one model at one endpoint."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        options: Mapping[str, Any] | None = None,
        timeout_s: float = 120.0,
        num_retries: int = 6,
        concurrency: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Nothing is sent yet.

        Args:
          url: up to and without `/chat/completions`, such as https://api.openai.com/v1.
          model: its name there.
          key: sent as a bearer token; empty sends none.
          options: further members of each request; a value of None leaves that member out.
          timeout_s: that one answer may take.
          num_retries: further tries of one prompt.
          concurrency: requests at the same time.
          sleep: waits that many seconds.

        Raises:
          UsageError: if the URL is no http or https URL.
        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--endpoint={url}: must start with http:// or https://")
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._options = dict(options or {})
        self._timeout_s = timeout_s
        self._num_retries = num_retries
        self._concurrency = concurrency
        self._sleep = sleep

    def ask(self, instructions: str, prompts: Sequence[str]) -> list[Answer]:
        """The answer to each prompt, in their order.

        Args:
          instructions: the system message.
          prompts: the user messages, each a conversation of its own.

        Raises:
          UsageError: if a request is refused for good, or still fails after all tries.
        """
        with concurrent.futures.ThreadPoolExecutor(self._concurrency, "endpoint") as pool:
            asked = [pool.submit(self._ask, instructions, prompt) for prompt in prompts]
            try:
                return [future.result() for future in asked]
            except BaseException:
                # What is refused once is refused always: do not pay for the rest.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, instructions: str, prompt: str) -> Answer:
        request = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": instructions},
                {"role": "user", "content": prompt},
            ],
            **self._options,
        }
        body = json.dumps({name: value for name, value in request.items() if value is not None})
        for tried in range(self._num_retries + 1):
            try:
                return _read(self._post(body.encode()))
            except _RecoverableError as error:
                if tried == self._num_retries:
                    raise UsageError(
                        f"--endpoint: {self._url}: {error}, also after {tried} retries; the same "
                        "command goes on later"
                    ) from error
                pause_s = min(_FIRST_PAUSE_S * 2**tried, _LONGEST_PAUSE_S)
                # Not all at the same moment again.
                pause_s *= random.uniform(0.5, 1.0)
                self._sleep(max(pause_s, min(error.pause_s or 0.0, _LONGEST_PAUSE_S)))
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self._url, data=body, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            with error:
                reason = f"{error.code} {error.reason}: {_message(error.read())}"
                if error.code in _WORTH_ANOTHER_TRY or error.code >= 500:
                    raise _RecoverableError(reason, _retry_after_s(error.headers)) from error
            raise UsageError(f"--endpoint: {self._url} refused: {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            # URLError, timeouts, connections that break while the answer arrives.
            raise _RecoverableError(f"no answer ({error})") from error


def _read(answer: bytes) -> Answer:
    try:
        parsed = json.loads(answer)
        text = parsed["choices"][0]["message"]["content"]
        usage = parsed.get("usage") or {}
        return Answer(
            # A model that declines, or thinks up to its limit, sends null.
            "" if text is None else str(text),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        shown = answer[:_MAX_ERROR_CHARS].decode(errors="replace")
        raise _RecoverableError(f"no chat completion: {shown!r}") from error


def _message(answer: bytes) -> str:
    """The server's own words, in one line."""
    text = answer.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:_MAX_ERROR_CHARS] or "no reason given"


def _retry_after_s(headers: Any) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date (RFC 9110, 10.2.3)."""
    value = headers.get("Retry-After", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
