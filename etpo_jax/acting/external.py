"""Reflection by a model behind an endpoint: the paper's GPT-4 row, or any model that is served.

There is nothing to train and no token to see; everything else is the loop, the logs and the report
of any run, so that tables and figures can hold such a model against trained ones.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from env.base import ChatTask, State, Task, UsageError
from etpo_jax.acting.chat_endpoint import Answer, ChatEndpoint
from etpo_jax.acting.rollout import Actions
from etpo_jax.config import Config
from etpo_jax.roles import Role

BILLED = ("endpoint_prompt_tokens", "endpoint_completion_tokens", "endpoint_cost_usd")
"""Names of the metrics that account for a model behind an endpoint."""

_NO_TOKENS = np.zeros(0, np.int32)
_NO_LOG_PROBS = np.zeros(0, np.float32)
_PER_PRICE = 1e6


class TextPrompts:
    """Texts of states, whole: the model's window is for its server to know."""

    def __init__(self, task: Task):
        self._task = task

    def encode(self, state: State) -> tuple[str, np.ndarray]:
        return self._task.render(state), _NO_TOKENS


class ExternalModel:
    """An actor that asks an endpoint, and the learner that keeps account of it.

    Attributes:
      state: what a checkpoint holds: tokens asked and answered so far.
    """

    def __init__(self, endpoint: ChatEndpoint, task: Task, config: Config):
        """Asks nothing yet.

        Raises:
          UsageError: if the task cannot be asked of a chat model.
        """
        if not isinstance(task, ChatTask):
            raise UsageError(
                f"--dataset={config.task.dataset}: this task cannot be asked of --endpoint"
            )
        self._endpoint = endpoint
        self._task = task
        self._config = config.endpoint
        self.state: dict[str, jax.Array] = {
            name: jnp.zeros((), jnp.int32) for name in ("prompt_tokens", "completion_tokens")
        }

    def weights(self, trunk: Role) -> None:
        """There are none here."""

    def policy_trunk(self) -> Role:
        return {}

    def start(self, mean_reward: float) -> None:
        del mean_reward

    def act(
        self,
        weights: None,
        encoded: Sequence[tuple[str, np.ndarray]],
        key: jax.Array,
        *,
        reference_weights: None = None,
    ) -> Actions:
        """Asks for an action for each prompt.

        Raises:
          UsageError: if the endpoint refuses, or the budget is used up.
        """
        budget, cost = self._config.endpoint_budget, self.usage()["endpoint_cost_usd"]
        if budget is not None and cost >= budget:
            raise UsageError(
                f"--endpoint_budget={budget:g}: {cost:.2f} USD are spent; a larger one goes on"
            )
        texts = [text for text, _ in encoded]
        answers = self._endpoint.ask(self._task.instructions, texts)
        self._account(answers)
        return Actions(
            prompts=texts,
            prompt_tokens=[_NO_TOKENS] * len(texts),
            texts=[self._task.action_of(answer.text) for answer in answers],
            tokens=[_NO_TOKENS] * len(texts),
            log_probs=[_NO_LOG_PROBS] * len(texts),
            num_tokens=sum(answer.completion_tokens for answer in answers),
        )

    def usage(self) -> dict[str, float]:
        """Tokens and, at the prices of the flags, US dollars of the whole run so far."""
        config = self._config
        prompt, completion = (int(self.state[n]) for n in ("prompt_tokens", "completion_tokens"))
        cost = prompt * config.endpoint_prompt_price + completion * config.endpoint_completion_price
        return dict(zip(BILLED, (prompt, completion, cost / _PER_PRICE), strict=True))

    def _account(self, answers: Sequence[Answer]) -> None:
        self.state = {
            name: self.state[name] + sum(getattr(answer, name) for answer in answers)
            for name in self.state
        }


def make_endpoint(config: Config, environment: Mapping[str, str] = os.environ) -> ChatEndpoint:
    """The endpoint that the flags describe, with the key that the environment holds.

    Raises:
      UsageError: if the URL is none.
    """
    endpoint, sampling = config.endpoint, config.sampling
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "top_k": sampling.top_k or None,
        **json.loads(endpoint.endpoint_options or "{}"),
    }
    return ChatEndpoint(
        endpoint.endpoint,
        endpoint.endpoint_model,
        key=environment.get(endpoint.endpoint_key_variable, ""),
        options=options,
        timeout_s=endpoint.endpoint_timeout_s,
        num_retries=endpoint.endpoint_retries,
        concurrency=endpoint.endpoint_concurrency,
    )
