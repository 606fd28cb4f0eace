"""All settings of a run: one frozen dataclass per section, each field with its help and its range.

`etpo_jax.flags` makes a flag of every field, and `etpo_jax.Trainer` takes every field by its name.
The settings of an algorithm are a section of their own, which stands in the algorithm's file.
Defaults are the recommended method; docs/presets.md has the study behind them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from env.command_line import near_names
from etpo_jax import registry
from etpo_jax.exploration import Exploration
from etpo_jax.model_settings import FinetuneConfig, ModelConfig
from etpo_jax.renamed import RENAMED
from etpo_jax.settings import Section, option, parse_choice, parse_interval, parse_options
from etpo_jax.task_settings import TaskConfig

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names of the trackers in `etpo_jax.runs.trackers`."""

LENGTH_MULTIPLE = 128
"""Prompts and actions are padded to a multiple of so many tokens: few shapes, few compilations."""


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """Run: what is trained how long, and where the results are kept."""

    run_dir: str | None = option(
        None, "Folder of the run. It is made, or the run in it is resumed.", may_differ=True
    )
    algorithm: str = option(
        "etpo",
        "Learning algorithm: etpo (Algorithm 1 of the paper), the policy-gradient baselines ppo_kl "
        "and poad, reflection (no training), or your own as package.module:Class.",
    )
    num_env_steps: int = option(
        480, "Environment steps in all; each executes one action.", lower=1, may_differ=True
    )
    num_envs: int = option(16, "Episodes that run side by side.", lower=1)
    steps_per_update: int = option(1, "Steps of each episode between two updates.", lower=1)
    seed: int = option(0, "Seed of sampling, replay and initialisation.", lower=0)
    checkpoint_every: str = option(
        "auto",
        "Updates (10) or time (20min) between two checkpoints; auto writes as many as take 5 % "
        "of the time, and at least one every 30 minutes.",
        parse=parse_interval,
        may_differ=True,
    )
    trackers: str = option(
        "tensorboard",
        "Where the run is shown beside its folder: tensorboard, wandb (Weights & Biases) and "
        "mlflow, separated by commas, or none. docs/report.md says what they get.",
        may_differ=True,
    )
    explore: str = option(
        "",
        "Budget for new programs: share=0.25 lets a quarter of the environments explore. With it, "
        "source=policy or reference is what they sample, temperature=1.3 divides their logits once "
        "more, redraws=8 bounds the further draws of a program that was executed before, and "
        "start=100 is the environment step at which they begin (docs/algorithm.md).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.tracker_names
        if unknown := [name for name in names if name not in TRACKERS]:
            raise ValueError(
                f"--trackers={self.trackers}: {unknown[0]!r} is not one of {', '.join(TRACKERS)}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"--trackers={self.trackers}: names a tracker twice")
        _ = self.num_exploring

    @property
    def exploration(self) -> Exploration:
        """`explore`, parsed."""
        return Exploration.parse(self.explore)

    @property
    def num_exploring(self) -> int:
        """Number of environments that explore once exploration has begun."""
        return self.exploration.num_exploring(self.num_envs)

    @property
    def collection_size(self) -> int:
        """Actions that are collected between two updates."""
        return self.num_envs * self.steps_per_update

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers in their order; empty for none."""
        if self.trackers in ("", "none"):
            return ()
        return tuple(name.strip() for name in self.trackers.split(","))


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Section):
    """Sampling: how actions are drawn; the probability of each drawn token is kept with it."""

    temperature: float = option(
        1.0, "Divisor of the logits before sampling.", lower=0.0, exclusive_lower=True
    )
    top_k: int = option(0, "Sample among the most likely tokens only; 0 is all.", lower=0)
    top_p: float = option(
        1.0,
        "Sample among the fewest tokens that hold this much probability.",
        lower=0.0,
        upper=1.0,
        exclusive_lower=True,
    )
    support_threshold: float = option(
        1e-3,
        "Policy and reference are restricted to tokens to which the reference gives at least this "
        "probability, in sampling and in every loss; 0 is all tokens.",
        lower=0.0,
        upper=0.5,
    )
    max_new_tokens: int = option(64, "Tokens of an action at most.", lower=1)


@dataclasses.dataclass(frozen=True)
class ExecutionConfig(Section):
    """Execution: how generated programs are run."""

    isolation: str = option(
        "auto",
        "Wall around generated programs, see docs/execution.md; unsafe has none but separate "
        "processes.",
        choices=("auto", "bwrap", "landlock", "seccomp", "unsafe"),
        may_differ=True,
    )
    executor: str = option(
        "local",
        "local executes programs on this machine, ray on every node of a Ray cluster; settings "
        "follow a colon. local:workers=4 executes so many programs at the same time, by default "
        "one per core; ray:address=HOST:PORT,actors=4,workers=8 names the cluster, the number of "
        "executors and the workers of each.",
        may_differ=True,
    )
    limits: str = option(
        "",
        "Limits of a program per split, such as timeout_s=10,memory_mb=1024,cpu_s=5,max_threads=32,"
        "max_output_kb=16384 (these are the defaults; cpu_s is half of timeout_s).",
    )
    libraries: str = option(
        "",
        "Modules, separated by commas, that programs may import beyond the standard library, "
        "numpy, scipy, scikit-learn and pandas.",
    )
    reward_cache: str = option(
        "auto",
        "Folder that remembers rewards of programs by content; auto is in ~/.cache, off executes "
        "every program.",
        may_differ=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.named_limits
        for name in ("workers", "actors"):
            if self.executor_options.get(name, 1) < 1:
                raise ValueError(f"--executor={self.executor}: {name} must be at least 1")

    @property
    def named_limits(self) -> dict[str, Any]:
        """The limits that are named, in the flag's units."""
        kinds: dict[str, type] = {"timeout_s": float}
        kinds |= dict.fromkeys(("memory_mb", "cpu_s", "max_threads", "max_output_kb"), int)
        values = parse_options("limits", self.limits, kinds)
        if values.get("timeout_s", 1.0) <= 0:
            raise ValueError(f"--limits={self.limits}: timeout_s must be above 0")
        for name, value in values.items():
            if value < (least := {"memory_mb": 16, "cpu_s": 1}.get(name, 0)):
                raise ValueError(f"--limits={self.limits}: {name} must be >= {least}")
        return values

    @property
    def num_workers(self) -> int:
        """Programs executed at the same time by an executor; 0 is one per core."""
        return self.executor_options.get("workers", 0)

    @property
    def executor_options(self) -> dict[str, Any]:
        """`workers` of an executor, `address` and `actors` of Ray, where they are named."""
        kinds: dict[str, dict[str, type]] = {
            "local": {"workers": int},
            "ray": {"address": str, "actors": int, "workers": int},
        }
        return parse_choice("executor", self.executor, kinds)[1]

    @property
    def library_names(self) -> list[str]:
        """The modules in `libraries`."""
        return [name.strip() for name in self.libraries.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
      learning: the section of `run.algorithm`, an instance of its `Settings`.
    """

    run: RunConfig = RunConfig()
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    sampling: SamplingConfig = SamplingConfig()
    execution: ExecutionConfig = ExecutionConfig()
    learning: Any = None

    def __post_init__(self) -> None:
        algorithm = registry.find_algorithm(self.run.algorithm)
        if self.learning is None:
            object.__setattr__(self, "learning", algorithm.Settings())
        self.learning.check(self)
        for name in algorithm.ignores:
            section, unread = getattr(self, name), SECTIONS[name]()
            given = [
                key for key in section.names() if getattr(section, key) != getattr(unread, key)
            ]
            if given:
                raise ValueError(f"--{given[0]}: --algorithm={self.run.algorithm} does not read it")
        _, transitions = algorithm.gradient_steps(self)
        size = self.finetune.microbatch_size
        if size and transitions % size:
            raise ValueError(
                f"--microbatch_size={size}: must divide the {transitions} transitions of a "
                "gradient step"
            )

    @property
    def algorithm(self) -> Any:
        """The class of the algorithm, a subclass of `etpo_jax.algorithms.base.Algorithm`."""
        return registry.find_algorithm(self.run.algorithm)

    @property
    def samples_with_reference(self) -> bool:
        """True if sampling needs the reference's logits: for a support mask or a tilt."""
        return self.sampling.support_threshold > 0 or self.finetune.tilt_learning_rate > 0

    @property
    def may_differ(self) -> frozenset[str]:
        """Settings that may have another value when a run is resumed."""
        return frozenset(
            field.name
            for section in (*SECTIONS.values(), type(self.learning))
            for field in dataclasses.fields(section)
            if field.metadata["may_differ"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Value of every setting that the run reads, by name, section by section."""
        return {
            field.name: getattr(section, field.name)
            for name in (*SECTIONS, "learning")
            for section in [getattr(self, name)]
            for field in dataclasses.fields(section)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings with these values; an absent one has its default.

        Raises:
          ValueError: naming the setting and what is allowed: for a value out of range, a name that
            no setting has, or one that the chosen algorithm does not read.
        """
        name = values.get("algorithm", RunConfig().algorithm)
        if isinstance(name, str):
            name = registry.stored_name(name)
            values = {**values, "algorithm": name}
        sections = {**SECTIONS, "learning": registry.find_algorithm(name).Settings}
        known = [field for section in sections.values() for field in section.names()]
        for field in values:
            if field not in known:
                raise ValueError(_unknown(field, name, known))
        made = {
            key: section(**{name: values[name] for name in section.names() if name in values})
            for key, section in sections.items()
        }
        return cls(**made)

    @staticmethod
    def defaults(algorithm: str) -> dict[str, Any]:
        """Default of every setting that a run of this algorithm reads, by name, unchecked."""
        sections = (*SECTIONS.values(), registry.find_algorithm(algorithm).Settings)
        fields = [field for section in sections for field in dataclasses.fields(section)]
        return {field.name: field.default for field in fields}

    def replace(self, **values: Any) -> Self:
        """The same settings but for these, by name; errors as `from_dict`."""
        return self.from_dict({**self.to_dict(), **values})


def _unknown(field: str, algorithm: str, known: Sequence[str]) -> str:
    readers = [
        name for name, other in registry.algorithms().items() if field in other.Settings.names()
    ]
    if readers:
        return (
            f"--{field}: --algorithm={algorithm} does not read it, {' and '.join(readers)} "
            f"{'does' if len(readers) == 1 else 'do'}"
        )
    if field in RENAMED:
        return f"--{field}: {RENAMED[field]}"
    near = near_names(field, known)
    hint = f"; did you mean {' or '.join(f'--{name}' for name in near)}?" if near else ""
    return f"--{field}: there is no such setting{hint}"


SECTIONS: dict[str, type[Section]] = {
    "run": RunConfig,
    "task": TaskConfig,
    "model": ModelConfig,
    "finetune": FinetuneConfig,
    "sampling": SamplingConfig,
    "execution": ExecutionConfig,
}
"""Sections that every run has, by their name in `Config`."""
