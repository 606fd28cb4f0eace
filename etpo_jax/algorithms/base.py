"""The interface between the host loop and a learning algorithm, which is one file."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from etpo_jax.acting.replay import Replay
from etpo_jax.acting.transitions import Batch, Transition
from etpo_jax.algorithms.gradients import Metrics, constrain
from etpo_jax.algorithms.inspection import Inspection
from etpo_jax.algorithms.networks import Networks
from etpo_jax.config import Config
from etpo_jax.distribution import Distribution
from etpo_jax.learning import LearningConfig
from etpo_jax.roles import Role
from etpo_jax.settings import Section
from models.transformer import Decoder


class Hyperparameters:
    """Numbers of the settings that compiled programs take as arguments, float32 scalars.

    A pytree whose leaves are attributes: `traced_numbers` of the algorithm's settings, such as
    those declared with `traced=True`, and `temperature` and `support_threshold` of the losses.
    Another value of them does not compile again.
    """

    def __init__(self, **values: Any):
        self._values = values

    @classmethod
    def of(cls, config: Config) -> "Hyperparameters":
        """The numbers in the settings of a run."""
        learning = config.learning
        values = learning.traced_numbers()
        values["temperature"] = (
            getattr(learning, "loss_temperature", None) or config.sampling.temperature
        )
        values["support_threshold"] = config.sampling.support_threshold
        return cls(**{name: jnp.float32(value) for name, value in values.items()})

    def __getattr__(self, name: str) -> Float[Array, ""]:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def replace(self, **values: Any) -> "Hyperparameters":
        """A copy with other values of some numbers."""
        return Hyperparameters(**{**self._values, **values})

    @property
    def distribution(self) -> Distribution:
        """Temperature and support of pi and rho in the losses."""
        return Distribution(self.temperature, self.support_threshold)


jax.tree_util.register_pytree_node(
    Hyperparameters,
    lambda hyper: (tuple(hyper._values.values()), tuple(hyper._values)),
    lambda names, values: Hyperparameters(**dict(zip(names, values, strict=True))),
)


class Experience:
    """The transitions that an algorithm may learn from between two collections.

    Attributes:
      new: the newest collection; empty while its programs are still executed.
      replay: the newest transitions, `new` included once they are executed.
    """

    def __init__(
        self,
        new: Sequence[Transition],
        replay: Replay,
        *,
        collection_size: int,
        collate: Callable[[Sequence[Transition]], Batch],
        rng: Callable[[int], np.random.Generator],
    ):
        """Made by the host loop, twice for each update.

        Args:
          new, replay: see above.
          collection_size: actions of a whole collection.
          collate: pads transitions to a batch.
          rng: makes the random generator of a number; the same one in the same update.
        """
        self.new = list(new)
        self.replay = replay
        self._collection_size = collection_size
        self._collate = collate
        self.rng = rng

    def collection(self) -> Batch:
        """The newest collection as one batch.

        A smaller last one is filled up with itself, so that its shape is that of the others: row i
        is a copy of row i % len(new).
        """
        size, new = self._collection_size, self.new
        return self._collate([new[index % len(new)] for index in range(size)])

    def fresh(self, size: int, index: int) -> Batch:
        """A minibatch of new transitions, filled up from the replay if they are too few.

        Args:
          size: transitions of the minibatch.
          index: number of the gradient step, which seeds the choice.
        """
        rng, new = self.rng(index), self.new
        if len(new) > size:
            chosen = rng.choice(len(new), size=size, replace=False)
            return self._collate([new[row] for row in chosen])
        rest = self.replay.sample(size - len(new), rng) if len(new) < size else []
        return self._collate(new + rest)

    def sample(self, size: int, index: int) -> Batch:
        """A random minibatch of the replay; arguments as for `fresh`."""
        return self._collate(self.replay.sample(size, self.rng(index)))


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Facts about a gradient step from which its memory is estimated (`devices.memory`).

    Attributes:
      scored_rows: transitions whose logits exist at the same time outside the gradient.
      gradients_at_once: whether the gradients of all networks are alive at the same time.
      is_beside_sampling: whether gradient steps are taken while the sampler's weights are kept.
    """

    scored_rows: int
    gradients_at_once: bool
    is_beside_sampling: bool = False


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """Shapes and shardings of a run, from which its programs are lowered without any array.

    Attributes:
      networks: the networks as the algorithm reads them.
      base, state: shapes with shardings.
      make_batch: makes the shapes of a batch of so many transitions with longest prompts and
        actions.
      whole: gives shapes the sharding of arrays that come from the host.
      config, mesh: settings and devices.
    """

    networks: Networks
    base: Any
    state: Any
    make_batch: Callable[[int], Batch]
    whole: Callable[[Any], Any]
    config: Config
    mesh: Mesh


class Algorithm(abc.ABC):
    """One learning algorithm; a subclass in one file, with `@register_algorithm`, is complete.

    Class attributes:
      Settings: its section of settings, a subclass of `LearningConfig` or `Section`.
      learns: whether it takes gradient steps.
      learns_from_exploration: whether it gets the actions of environments that explore too, which
        the policy did not sample; only their environment steps count where it is False.
      ignores: sections of `Config` that it does not read, by name; their flags are refused.

    Attributes:
      state: pytree of arrays that a checkpoint holds; assigned when a run is resumed. The memory
        plan reads its attributes `policy` and `critic`, None where there is no such network.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Section]] = LearningConfig
    learns: ClassVar[bool] = True
    learns_from_exploration: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = ()
    state: Any

    def __init__(self, model: Decoder, base: Any, config: Config, mesh: Mesh):
        """Makes the networks and the initial state, placed on the mesh.

        Args:
          model: the decoder, with the configured adapters.
          base: its parameters, the frozen reference.
          config: settings of the run; `config.learning` is a `Settings`.
          mesh: devices.
        """
        self.networks = self.make_networks(model, config)
        self.base = base
        self.config = config
        self.mesh = mesh
        self.hyper = Hyperparameters.of(config)
        self.state = jax.jit(
            lambda base: constrain(self.initial_state(self.networks, base, config), mesh)
        )(base)

    def policy_trunk(self) -> Role:
        """Variables that actions are sampled with; an empty role is the untrained model."""
        policy: Role = self.state.policy
        return policy

    def start(self, mean_reward: float) -> None:
        """Called once, with the mean reward of the first collection, before anything is learnt."""
        del mean_reward

    def while_programs_execute(self, experience: Experience) -> list[Metrics]:
        """Takes gradient steps that need no new transitions, while programs are executed.

        Args:
          experience: the replay; its `new` is empty.

        Returns:
          Metrics of each step; they may still be on their way from the device.
        """
        del experience
        return []

    @abc.abstractmethod
    def after_collection(self, experience: Experience) -> list[Metrics]:
        """Learns from the new transitions, or only measures the policy on them.

        Args:
          experience: the new transitions and the replay.

        Returns:
          Metrics of each step or measurement. The last `kl_to_reference` and `entropy` are logged,
          and for all other names the mean of those that have it. A step has `is_finite`, 0 where it
          was not taken.
        """

    @property
    def packs_rows(self) -> bool:
        """Whether batches say how their rows are packed, so that repeated tokens are computed once.

        Only a CPU does. On accelerators the keys that blocks gather would take more memory than the
        padding, and the fused attention kernels do not read them. An algorithm that gives
        `gradients.in_microbatches` other rows than those of the batch clears `microbatch_blocks`
        before, which were counted for these.
        """
        devices = self.mesh.devices
        is_cpu = devices.size == 1 and devices.flat[0].platform == "cpu"
        return is_cpu and self.networks.model.gains_by_packing

    def totals(self) -> dict[str, float]:
        """Further metrics of the whole run so far, such as costs."""
        return {}

    def inspect(self, batch: Batch) -> Inspection | None:
        """Credit of every token for the report, None if the algorithm has none; learns nothing."""
        del batch
        return None

    @classmethod
    def replay_size(cls, config: Config) -> int:
        """Transitions that are kept for learning, at least one collection."""
        return config.run.collection_size

    # Facts that need no arrays; `plan`, `export` and `evaluate` ask for them.

    @classmethod
    def make_networks(cls, model: Decoder, config: Config) -> Networks:
        """The networks over one trunk, with this algorithm's reading of the critic."""
        finetune = config.finetune
        dtype = jnp.dtype(finetune.trained_dtype)
        return Networks(model, trained_dtype=dtype, has_tilt=finetune.tilt_learning_rate > 0)

    @classmethod
    @abc.abstractmethod
    def initial_state(cls, networks: Networks, base: Any, config: Config) -> Any:
        """The state before the first step; may be traced, for its shapes without any arrays."""

    @classmethod
    def policy_keys(cls, config: Config) -> tuple[str, ...]:
        """Path of the policy's variables in `state`; empty if nothing is trained."""
        del config
        return ("policy",)

    @classmethod
    def gradient_steps(cls, config: Config) -> tuple[int, int]:
        """Number of gradient steps between two collections, and transitions of each.

        Settings without `gradient_steps_per_update` and `minibatch_size` mean one step, on the
        whole collection.
        """
        return (
            getattr(config.learning, "gradient_steps_per_update", 1),
            getattr(config.learning, "minibatch_size", config.run.collection_size),
        )

    @classmethod
    def step_memory(cls, config: Config) -> StepMemory:
        """Facts for the memory plan; only needed if the algorithm learns."""
        size = config.run.collection_size
        return StepMemory(scored_rows=size, gradients_at_once=True)

    @classmethod
    def lower_step(cls, run: "AbstractRun") -> Any:
        """Lowers the gradient step for ahead-of-time compilation (`plan --aot`).

        Returns:
          The result of `jax.jit(...).lower`, or None if nothing is learnt.
        """
        del run
