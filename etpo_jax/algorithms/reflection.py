"""Reflection, the paper's baseline without training: the model answers and is shown its errors."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from etpo_jax.acting.external import EndpointOptions, ExternalModel
from etpo_jax.algorithms.base import Algorithm, Experience
from etpo_jax.algorithms.gradients import Metrics
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.token_scores import make_measure
from etpo_jax.config import Config
from etpo_jax.registry import register_algorithm
from etpo_jax.roles import Role
from etpo_jax.settings import Section, option
from models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class ReflectionConfig(Section):
    """Settings of reflection."""

    endpoint: str = option(
        "",
        "URL of an OpenAI-compatible endpoint, such as https://api.openai.com/v1, where the model "
        "that --model names answers; --temperature, --top_p and --max_new_tokens are asked of it.",
        may_differ=True,
    )
    endpoint_options: str = option(
        "",
        "JSON object with further members of each request, and 'client' (timeout_s, max_retries, "
        "concurrency, key_variable) and 'budget' (usd, prompt_price and completion_price in US "
        "dollars per million tokens).",
        may_differ=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.endpoint_options and not self.endpoint:
            raise ValueError("--endpoint_options: needs --endpoint")
        _ = self.options

    def check(self, config: Config) -> None:
        if self.endpoint and config.model.model == type(config.model)().model:
            raise ValueError(
                f"--endpoint={self.endpoint}: needs --model, the name of the model there"
            )
        if self.endpoint and config.run.explore:
            raise ValueError(f"--explore={config.run.explore}: --endpoint does not sample for it")

    @property
    def options(self) -> EndpointOptions:
        """`endpoint_options`, parsed."""
        return EndpointOptions.parse(self.endpoint_options)


@register_algorithm("reflection")
class Reflection(Algorithm):
    """No learning: the untrained model answers, and its errors are its next prompts."""

    Settings = ReflectionConfig
    learns = False
    ignores = ("finetune",)

    def __init__(self, model: Decoder, base: Any, config: Config, mesh: Mesh):
        super().__init__(model, base, config, mesh)
        self._measure = make_measure(self.networks)

    def policy_trunk(self) -> Role:
        return {}

    def after_collection(self, experience: Experience) -> list[Metrics]:
        return [self._measure(self.base, {}, experience.collection(), self.hyper)]

    @classmethod
    def initial_state(cls, networks: Networks, base: Any, config: Config) -> dict[str, Any]:
        del networks, base, config
        return {"step": jnp.zeros((), jnp.int32)}

    @classmethod
    def policy_keys(cls, config: Config) -> tuple[str, ...]:
        del config
        return ()


class EndpointReflection(Reflection):
    """Reflection by a model elsewhere: nothing is measured, and its answers are paid for.

    Attributes:
      state: tokens asked and answered so far.
    """

    def __init__(self, external: ExternalModel):
        """Takes the account of the actor that asks the endpoint."""
        self._external = external

    @property
    def state(self) -> dict[str, Any]:
        return self._external.state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._external.state = state

    def after_collection(self, experience: Experience) -> list[Metrics]:
        del experience
        return []

    def totals(self) -> dict[str, float]:
        return self._external.usage()
