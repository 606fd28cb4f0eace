"""Clipped policy gradients with a value network: what PPO-KL and POAD have in common.

Both learn from each collection alone: the worth of its actions is computed once, with the
parameters that sampled them (`label`), and several steps follow the clipped surrogate (`step`). The
value network is a trunk of its own, started from rho as ETPO's critic is, with a scalar head in
place of the vocabulary's.
"""

import abc
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from etpo_jax.acting.transitions import Batch, Blocks
from etpo_jax.algorithms import optimizer
from etpo_jax.algorithms.base import (
    AbstractRun,
    Algorithm,
    Experience,
    Hyperparameters,
    StepMemory,
)
from etpo_jax.algorithms.clipped_losses import (
    approximate_kl,
    clipped_share,
    clipped_surrogate,
    standardize,
    value_loss,
)
from etpo_jax.algorithms.clipped_steps import (
    ActorCriticState,
    Labels,
    Scores,
    minibatches,
    score_policy,
    standardize_labels,
    state_values,
    take_steps,
)
from etpo_jax.algorithms.gradients import (
    Backward,
    Metrics,
    Share,
    Step,
    constrain,
    in_microbatches,
    initial_key,
    next_state_values,
    over_devices,
    pulled_back,
)
from etpo_jax.algorithms.networks import Critic, Networks
from etpo_jax.algorithms.token_scores import divergences
from etpo_jax.config import Config
from etpo_jax.divergence import masked_mean
from etpo_jax.learning import LearningConfig
from etpo_jax.roles import Role
from etpo_jax.settings import option, parse_options
from models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class ClippedUpdate:
    """The value of `--clip_ratio`: the clip, and what is added to the update.

    Attributes:
      ratio: distance from 1 at which the ratio to the sampling policy is clipped.
      max_kl: greatest `approximate_kl` of a minibatch, per token or per action, with which the
        policy takes a step; None is no limit.
      entropy: weight of the mean entropy of the policy's tokens, which is maximised too.
      value_clip: see `value_loss`; None is no clip.
      trace: "action" ends the trace of advantages with each action, "episode" lets it go on through
        the actions of an episode within a collection.
      standardize: whether advantages are standardised over the "collection" or each "minibatch".
    """

    ratio: float
    max_kl: float | None = None
    entropy: float = 0.0
    value_clip: float | None = None
    trace: str = "action"
    standardize: str = "collection"

    @classmethod
    def parse(cls, text: str) -> "ClippedUpdate":
        """Reads a value such as `0.2:max_kl=0.02,entropy=0.01`.

        Raises:
          ValueError: naming the flag, its value and what is allowed.
        """
        ratio, _, rest = text.partition(":")
        numbers = dict.fromkeys(("max_kl", "entropy", "value_clip"), float)
        names = {"trace": ("action", "episode"), "standardize": ("collection", "minibatch")}
        options = parse_options("clip_ratio", rest, numbers | dict.fromkeys(names, str))
        for name, choices in names.items():
            if options.get(name, choices[0]) not in choices:
                raise ValueError(f"--clip_ratio={text}: {name} must be one of {', '.join(choices)}")
        try:
            options["ratio"] = float(ratio)
        except ValueError:
            raise ValueError(f"--clip_ratio={text}: must begin with a number") from None
        for name in ("ratio", *numbers):
            least = "0 or more" if name == "entropy" else "above 0"
            value = options.get(name, 1.0)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "entropy"):
                raise ValueError(f"--clip_ratio={text}: {name} must be {least}")
        return cls(**options)


@dataclasses.dataclass(frozen=True)
class ClippedConfig(LearningConfig):
    """Settings that the clipped policy gradients have in common."""

    beta: float = option(
        0.05, "Weight of the KL to the reference; 0 is without it.", lower=0.0, traced=True
    )
    clip_ratio: str = option(
        "0.2",
        "Distance from 1 at which the ratio to the sampling policy is clipped. Additions to the "
        "update follow a colon: 0.2:max_kl=0.02 takes no step of the policy on a minibatch whose "
        "approximate KL to the sampling policy is larger, entropy=0.01 rewards entropy, "
        "value_clip=0.2 limits how far a value moves, trace=episode (poad) continues the trace of "
        "advantages into the next actions of the episode, standardize=minibatch standardises "
        "advantages over each minibatch in place of the collection.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.clip_ratio, numbers.Real) and not isinstance(self.clip_ratio, bool):
            object.__setattr__(self, "clip_ratio", f"{self.clip_ratio:g}")
        super().__post_init__()
        _ = self.update

    @functools.cached_property
    def update(self) -> ClippedUpdate:
        """`clip_ratio`, parsed."""
        return ClippedUpdate.parse(self.clip_ratio)

    def traced_numbers(self) -> dict[str, float]:
        update = self.update
        return super().traced_numbers() | {
            "ratio_clip": update.ratio,
            "max_kl": update.max_kl or 0.0,
            "entropy_weight": update.entropy,
            "value_clip": update.value_clip or 0.0,
        }


class ActorCritic(Algorithm):
    """Base of PPO-KL and POAD: several clipped steps on each collection, which is never used again.

    Class attributes:
      is_per_token: whether advantages and ratios are those of tokens [b, j] or of actions [b].
    """

    Settings = ClippedConfig
    is_per_token: ClassVar[bool]
    state: ActorCriticState

    def __init__(self, model: Decoder, base: Any, config: Config, mesh: Mesh):
        super().__init__(model, base, config, mesh)
        self._label = self.make_label(self.networks, config)
        self._step = self.make_step(self.networks, config, mesh)

    # The parts in which PPO-KL and POAD differ.

    @classmethod
    def has_critic(cls, config: Config) -> bool:
        """True if the algorithm has a value network."""
        del config
        return True

    @classmethod
    @abc.abstractmethod
    def values(cls, networks: Networks, base: Any, critic: Critic, batch: Batch) -> Array:
        """The value network's V before each action [b] or before each token [b, j]."""

    @classmethod
    @abc.abstractmethod
    def worth(
        cls,
        batch: Batch,
        reference_log_prob_bj: Float[Array, "b j"],
        value: Float[Array, "*b"] | None,
        next_value_b: Float[Array, "b"],
        num_new: Int[Array, ""],
        hyper: Hyperparameters,
        config: Config,
    ) -> tuple[Array, Array, Array]:
        """Advantage, regression target and mask of a collection, per action or per token.

        Args:
          batch: the collection, row i a copy of row i % num_new.
          reference_log_prob_bj: log rho of the sampled tokens.
          value: result of `values`, None without a critic.
          next_value_b: values of the next states, 0 where the episode ended.
          num_new: rows that are no copies.
          hyper: traced numbers of the settings.
          config: the settings.
        """

    @classmethod
    @abc.abstractmethod
    def log_ratio(cls, scores: Scores, batch: Batch) -> tuple[Array, Array]:
        """log pi - log mu per action or per token, and the mask of what is real."""

    # The interface of an algorithm.

    def start(self, mean_reward: float) -> None:
        """Sets b0 of the value network: an unknown state is then worth the average reward."""
        if self.state.critic is not None:
            critic = self.state.critic.with_offset(mean_reward)
            self.state = dataclasses.replace(self.state, critic=critic)

    def after_collection(self, experience: Experience) -> list[Metrics]:
        return self.learn_collection(
            experience.collection(), experience.rng(0), len(experience.new)
        )

    def learn_collection(
        self, batch: Batch, rng: np.random.Generator, num_new: int | None = None
    ) -> list[Metrics]:
        """Takes all gradient steps on one collection.

        Args:
          batch: the collection.
          rng: draws the minibatches.
          num_new: rows that are no copies, see `worth`; None if none is a copy.
        """
        size, learning = len(batch.reward_b), self.config.learning
        count = jnp.int32(size if num_new is None else num_new)
        labels = self._label(self.state, self.base, batch, count, self.hyper)
        learned = []
        for rows in minibatches(
            size, learning.minibatch_size, learning.gradient_steps_per_update, rng
        ):
            self.state, metrics = self._step(self.state, self.base, batch, labels, rows, self.hyper)
            learned.append(metrics)
        return learned

    @classmethod
    def make_networks(cls, model: Decoder, config: Config) -> Networks:
        # A dueling critic has the scalar head that values are read from.
        networks = super().make_networks(model, config)
        return dataclasses.replace(networks, q_parameterization="dueling")

    @classmethod
    def initial_state(cls, networks: Networks, base: Any, config: Config) -> ActorCriticState:
        """Policy and value network start as rho, the value head as 0."""
        policy_key, critic_key = jax.random.split(initial_key(config.run.seed))
        transformation = optimizer.build(config)
        policy = networks.initial_policy(base, policy_key)
        critic = networks.initial_critic(base, critic_key) if cls.has_critic(config) else None
        return ActorCriticState(
            policy=policy,
            critic=critic,
            policy_optimizer=optimizer.initial(transformation, policy),
            critic_optimizer=None if critic is None else optimizer.initial(transformation, critic),
            step=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def step_memory(cls, config: Config) -> StepMemory:
        return StepMemory(scored_rows=config.run.collection_size, gradients_at_once=False)

    @classmethod
    def lower_step(cls, run: AbstractRun) -> Any:
        config, known = run.config, (run.state, run.base)
        batch = run.whole(run.make_batch(config.run.collection_size))
        hyper = run.whole(jax.eval_shape(lambda: Hyperparameters.of(config)))
        label, count = cls.make_label(run.networks, config), jax.ShapeDtypeStruct((), jnp.int32)
        labels = run.whole(jax.eval_shape(label, *known, batch, count, hyper))
        rows_m = run.whole(jax.ShapeDtypeStruct((config.learning.minibatch_size,), jnp.int32))
        step: Any = cls.make_step(run.networks, config, run.mesh)
        return step.lower(*known, batch, labels, rows_m, hyper)

    # The two compiled programs.

    @classmethod
    def make_label(cls, networks: Networks, config: Config) -> Callable[..., Labels]:
        """Makes the jitted (state, base, collection, num_new, hyperparameters) -> labels."""

        def label(
            state: ActorCriticState,
            base: Any,
            batch: Batch,
            num_new: Int[Array, ""],
            hyper: Hyperparameters,
        ) -> Labels:
            batch = jax.tree.map(over_devices, batch)
            reference_bjd = networks.action_hidden(base, {}, batch)
            scores = score_policy(networks, config, base, state.policy, reference_bjd, batch, hyper)
            critic = state.critic
            value, next_value_b = None, jnp.zeros_like(batch.reward_b)
            if critic is not None:
                value = cls.values(networks, base, critic, batch)
                next_value_b = next_state_values(
                    batch, lambda *prompts: state_values(networks, base, critic, *prompts)
                )
            advantage, target, mask = cls.worth(
                batch, scores.reference_log_prob_bj, value, next_value_b, num_new, hyper, config
            )
            if config.learning.update.standardize == "collection":
                advantage = standardize(advantage, mask)
            old_value = target if value is None else value
            return jax.lax.stop_gradient(Labels(reference_bjd, advantage, target, old_value))

        return jax.jit(label)

    @classmethod
    def make_step(cls, networks: Networks, config: Config, mesh: Mesh) -> Callable[..., Any]:
        """Makes the jitted gradient step on one minibatch of a collection.

        It maps (state, base, collection, labels, rows, hyperparameters) to (state, metrics), where
        `rows` are the transitions of the minibatch. The state is donated. Metrics are named as for
        ETPO: `critic_loss` is the loss of the value head, `clipped_share` the share of the
        minibatch whose ratio was outside the range in which it is not clipped. With `max_kl`,
        `approximate_kl` is what it limits and `skipped_policy_steps` 1 where no step was taken.
        """
        transformation = optimizer.build(config)

        def step(
            state: ActorCriticState,
            base: Any,
            batch: Batch,
            labels: Labels,
            rows_m: Int[Array, "m"],
            hyper: Hyperparameters,
        ) -> tuple[ActorCriticState, Metrics]:
            # The microbatches are of other rows than those that blocks were counted for.
            batch = dataclasses.replace(batch, microbatch_blocks=Blocks())
            data = jax.tree.map(lambda leaf: over_devices(leaf[rows_m]), (batch, labels))
            if config.learning.update.standardize == "minibatch":
                data = (data[0], standardize_labels(data[1], data[0].action_mask_bj))
            trained = (state.policy, state.critic)

            def backward(part: tuple[Batch, Labels], share: Share) -> Backward:
                return cls._backward(networks, config, base, trained, part, hyper, mesh, share)

            def critic_gradient(part: tuple[Batch, Labels], share: Share) -> Any:
                return jax.grad(cls._critic_loss, argnums=3)(
                    networks, config, base, state.critic, part, hyper, share
                )

            found = in_microbatches(
                backward,
                data,
                data[0].action_mask_bj,
                trained,
                config.finetune.microbatch_size,
                mesh,
                second=critic_gradient if config.finetune.adapters is None else None,
            )
            key = jax.random.fold_in(initial_key(config.run.seed), state.step)
            max_kl = None if config.learning.update.max_kl is None else hyper.max_kl
            state, metrics = take_steps(transformation, state, found, hyper, key, max_kl=max_kl)
            return constrain(state, mesh), metrics

        return jax.jit(step, donate_argnums=0)

    @classmethod
    def _backward(
        cls,
        networks: Networks,
        config: Config,
        base: Any,
        trained: tuple[Role, Critic | None],
        data: tuple[Batch, Labels],
        hyper: Hyperparameters,
        mesh: Mesh,
        share: Share,
    ) -> Backward:
        (batch, labels), update = data, config.learning.update
        policy, critic = trained
        of_entries = cls._share_of_entries(share)

        def policy_loss(policy: Role) -> tuple[Array, Metrics]:
            known = (networks, config, base, policy, labels.reference_bjd, batch, hyper)
            scores = score_policy(*known, has_entropy_gradient=bool(update.entropy))
            log_ratio, mask = cls.log_ratio(scores, batch)
            clip = {"clip_ratio": hyper.ratio_clip}
            entries = {
                "policy_loss": clipped_surrogate(log_ratio, labels.advantage, mask, **clip),
                "target_mean": masked_mean(labels.target, mask),
                "clipped_share": clipped_share(log_ratio, mask, **clip),
            }
            if update.max_kl is not None:
                entries["approximate_kl"] = approximate_kl(log_ratio, mask)
            per_action = divergences(scores.kl_bj, scores.entropy_bj, batch)
            metrics = {name: entry * of_entries for name, entry in entries.items()}
            metrics |= {name: entry * share.actions for name, entry in per_action.items()}
            if update.entropy:
                bonus = masked_mean(scores.entropy_bj, batch.action_mask_bj) * share.tokens
                metrics["policy_loss"] -= hyper.entropy_weight * bonus
            return metrics["policy_loss"], metrics

        policy_gradient, metrics = jax.grad(policy_loss, has_aux=True)(policy)
        metrics["critic_loss"], critic_back = jax.vjp(
            lambda critic: cls._critic_loss(networks, config, base, critic, data, hyper, share),
            critic,
        )

        def critic_gradient(step: Step | None) -> Any:
            return pulled_back(
                step, critic_back, jnp.ones_like(metrics["critic_loss"]), critic, mesh
            )

        gradients = (lambda _: constrain(policy_gradient, mesh), critic_gradient)
        return Backward(metrics, gradients, kept=share)

    @classmethod
    def _critic_loss(
        cls,
        networks: Networks,
        config: Config,
        base: Any,
        critic: Critic | None,
        data: tuple[Batch, Labels],
        hyper: Hyperparameters,
        share: Share,
    ) -> Float[Array, ""]:
        """The value network's loss on a part of a minibatch, weighted; 0 without one."""
        batch, labels = data
        if critic is None:
            return jnp.float32(0)
        value = cls.values(networks, base, critic, batch)
        mask = batch.action_mask_bj if cls.is_per_token else jnp.ones(value.shape, jnp.bool_)
        old_value = None if config.learning.update.value_clip is None else labels.old_value
        loss = value_loss(
            value, labels.target, mask, old_value=old_value, value_clip=hyper.value_clip
        )
        return loss * cls._share_of_entries(share)

    @classmethod
    def _share_of_entries(cls, share: Share) -> Array | float:
        """The part's share of what losses average over, tokens or actions."""
        return share.tokens if cls.is_per_token else share.actions
