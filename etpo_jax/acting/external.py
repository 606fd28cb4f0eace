"""A model behind an OpenAI-compatible chat endpoint as an actor: the paper's GPT-4 row.

Such a model plays reflection. It is not trained and its tokens are not seen, but its runs have the
loop, the logs and the report of every other run, so that tables and figures compare it with trained
models. Servers are OpenAI's own, vLLM, SGLang, llama.cpp and others; requests, timeouts and retries
are those of the `openai` client, an optional extra.
"""

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from env.base import ChatTask, State, Task, UsageError
from etpo_jax.acting.rollout import Actions, Prompt
from etpo_jax.config import SamplingConfig
from etpo_jax.roles import Role

BILLED = ("endpoint_prompt_tokens", "endpoint_completion_tokens", "endpoint_cost_usd")
"""Names of the metrics that account for a model behind an endpoint."""

_NO_TOKENS = np.zeros(0, np.int32)
_NO_LOG_PROBS = np.zeros(0, np.float32)
_TOKENS_PER_PRICE = 1e6
_MAX_ERROR_CHARS = 300
_SECTIONS = {
    "client": ("timeout_s", "max_retries", "concurrency", "key_variable"),
    "budget": ("usd", "prompt_price", "completion_price"),
}


@dataclasses.dataclass(frozen=True)
class EndpointOptions:
    """Settings of an endpoint beside its URL and model: the value of `--endpoint_options`.

    Attributes:
      request: members of each request, over those of the sampling settings; None leaves one out.
      timeout_s: seconds that one attempt of a request may take.
      max_retries: further attempts of a request that may yet succeed.
      concurrency: number of requests at the same time.
      key_variable: environment variable that holds the API key; if it is not set, "none" is sent
        in its place, which servers without keys ignore.
      usd: US dollars after which the run stops, which needs a price; None sets no limit.
      prompt_price: US dollars per million tokens of prompts.
      completion_price: US dollars per million tokens of answers.
    """

    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout_s: float = 120.0
    max_retries: int = 6
    concurrency: int = 8
    key_variable: str = "OPENAI_API_KEY"
    usd: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        number, whole = (int, float), (int,)
        self._check("timeout_s", number, 1e-3, "a number of at least 0.001")
        self._check("max_retries", whole, 0, "a whole number of at least 0")
        self._check("concurrency", whole, 1, "a whole number of at least 1")
        self._check("key_variable", (str,), "", "a string")
        for name in _SECTIONS["budget"]:
            if getattr(self, name) is not None:
                self._check(name, number, 0, "a number of at least 0")
        if self.usd is not None and not self.prompt_price + self.completion_price:
            raise ValueError(
                f"--endpoint_options: usd={self.usd:g}: needs prompt_price or completion_price"
            )

    def _check(self, name: str, types: tuple[type, ...], least: Any, wanted: str) -> None:
        value = getattr(self, name)
        # JSON's true is an int of Python, and its NaN compares false.
        if type(value) not in types or not value >= least:
            raise ValueError(f"--endpoint_options: {name}={value!r}: must be {wanted}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Options from a JSON object, such as `{"seed": 1, "client": {"timeout_s": 60}}`.

        The members "client" and "budget" hold the settings of this class; every other member
        belongs to the requests. An empty text stands for the defaults.

        Raises:
          ValueError: if the text is no JSON object, or a section holds an unknown or bad member.
        """
        try:
            request = json.loads(text or "{}")
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise ValueError(f"--endpoint_options={text}: must be a JSON object")
        settings: dict[str, Any] = {}
        for section, names in _SECTIONS.items():
            values = request.pop(section, {})
            if not isinstance(values, dict) or not set(values) <= set(names):
                raise ValueError(
                    f"--endpoint_options: {section}={values!r}: must be a JSON object "
                    f"with members of {', '.join(names)}"
                )
            settings |= values
        return cls(request=request, **settings)


class TextPrompts:
    """Prompts for a model that takes text; the server checks that they fit its window."""

    def __init__(self, task: Task):
        self._task = task

    def encode(self, state: State) -> Prompt:
        """The whole text of a state, without token ids."""
        return Prompt(self._task.render(state), _NO_TOKENS)


class _Answer(NamedTuple):
    """Text of one answer, and the tokens that are billed for it."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class ExternalModel:
    """An actor that asks an endpoint and keeps account of the tokens.

    Attributes:
      state: tokens of prompts and answers so far; kept in checkpoints.
    """

    def __init__(
        self,
        task: Task,
        *,
        url: str,
        model: str,
        options: EndpointOptions,
        sampling: SamplingConfig,
    ):
        """Prepares a client; nothing is sent yet.

        Args:
          task: a task whose prompts a chat model can answer.
          url: base URL of the endpoint, such as https://api.openai.com/v1.
          model: name of the model at the endpoint.
          options: members of each request, client and budget.
          sampling: temperature, top-k, top-p and number of new tokens that requests ask for.

        Raises:
          UsageError: if the task is no chat task, the URL is bad, or `openai` is not installed.
        """
        if not isinstance(task, ChatTask):
            raise UsageError(f"--endpoint: a chat model cannot be asked about the task {task.name}")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--endpoint={url}: must start with http:// or https://")
        try:
            import openai
        except ImportError as error:
            raise UsageError("--endpoint: needs the openai client: pip install openai") from error
        self._openai_error = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=url,
            # The client refuses to start without a key.
            api_key=os.environ.get(options.key_variable) or "none",
            timeout=options.timeout_s,
            max_retries=options.max_retries,
        )
        request = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "top_k": sampling.top_k or None,
            **options.request,
        }
        self._request = {name: value for name, value in request.items() if value is not None}
        self._task = task
        self._url = url
        self._model = model
        self._options = options
        self.state: dict[str, jax.Array] = {
            name: jnp.zeros((), jnp.int32) for name in ("prompt_tokens", "completion_tokens")
        }

    def weights(self, trunk: Role) -> None:
        """None, for the weights are at the endpoint."""

    def act(
        self,
        weights: None,
        prompts: Sequence[Prompt],
        key: jax.Array,
        *,
        reference_weights: None = None,
    ) -> Actions:
        """Asks for one action per prompt; weights and key are not read.

        Raises:
          UsageError: if a request is refused or fails after all retries, or the budget is used up.
        """
        limit, cost = self._options.usd, self.usage()["endpoint_cost_usd"]
        if limit is not None and cost >= limit:
            raise UsageError(
                f"--endpoint: {cost:.4g} USD of the budget of {limit:g} USD are spent; the same "
                "command with a larger budget resumes the run"
            )
        texts = [prompt.text for prompt in prompts]
        answers = self._ask_all(texts)
        self.state = {
            name: total + sum(getattr(answer, name) for answer in answers)
            for name, total in self.state.items()
        }
        return Actions(
            prompts=texts,
            prompt_tokens=[_NO_TOKENS] * len(texts),
            texts=[self._task.action_of(answer.text) for answer in answers],
            tokens=[_NO_TOKENS] * len(texts),
            log_probs=[_NO_LOG_PROBS] * len(texts),
            num_tokens=sum(answer.completion_tokens for answer in answers),
        )

    def usage(self) -> dict[str, float]:
        """The metrics `BILLED`: tokens and US dollars of the whole run so far."""
        options = self._options
        prompt, completion = (int(self.state[n]) for n in ("prompt_tokens", "completion_tokens"))
        cost = prompt * options.prompt_price + completion * options.completion_price
        return dict(zip(BILLED, (prompt, completion, cost / _TOKENS_PER_PRICE), strict=True))

    def _ask_all(self, prompts: Sequence[str]) -> list[_Answer]:
        """Answers to the prompts, in their order."""
        with concurrent.futures.ThreadPoolExecutor(self._options.concurrency, "endpoint") as pool:
            asked = [pool.submit(self._ask, prompt) for prompt in prompts]
            try:
                return [future.result() for future in asked]
            except BaseException:
                # A request that is refused once is refused always: do not pay for the others.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, prompt: str) -> _Answer:
        try:
            completion = self._client.chat.completions.create(
                model=self._model,
                messages=[
                    {"role": "system", "content": self._task.instructions},
                    {"role": "user", "content": prompt},
                ],
                extra_body=self._request,
            )
        except self._openai_error as error:
            # Only the cause of a connection error says what happened.
            raise self._failure(f"{error} {error.__cause__ or ''}") from error
        choices = getattr(completion, "choices", None)
        if not choices:
            raise self._failure(f"no chat completion: {completion!r}")
        usage = completion.usage
        return _Answer(
            # A model that declines, or thinks up to its limit, sends null.
            choices[0].message.content or "",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def _failure(self, reason: str) -> UsageError:
        shown = " ".join(reason.split())[:_MAX_ERROR_CHARS]
        return UsageError(f"--endpoint={self._url}: {shown}; the same command resumes the run")
