"""Settings that the learning algorithms have in common; each adds its own in its file."""

import dataclasses

from etpo_jax.settings import Section, option, parse_choice

_OPTIMIZER_OPTIONS = dict.fromkeys(("b1", "b2", "eps", "weight_decay", "clip_norm"), float)
_OPTIMIZERS = dict.fromkeys(("adamw", "lion"), _OPTIMIZER_OPTIONS)


@dataclasses.dataclass(frozen=True)
class LearningConfig(Section):
    """Learning: settings that the algorithms which train have in common."""

    gradient_steps_per_update: int = option(4, "Gradient steps after each collection.", lower=1)
    minibatch_size: int = option(16, "Transitions of a gradient step.", lower=1)
    beta: float = option(
        0.05,
        "Weight of the KL to the reference, in units of reward per nat.",
        lower=0.0,
        exclusive_lower=True,
        traced=True,
    )
    gamma: float = option(0.99, "Discount between actions.", lower=0.0, upper=1.0, traced=True)
    policy_learning_rate: float = option(
        1e-3, "Learning rate of the policy.", lower=0.0, traced=True
    )
    critic_learning_rate: float = option(
        1e-3, "Learning rate of the critic.", lower=0.0, traced=True
    )
    optimizer: str = option(
        "adamw",
        "Optimiser of both networks: adamw or lion. Settings follow a colon; with their defaults "
        "adamw:b1=0.9,b2=0.95,eps=1e-5,weight_decay=0,clip_norm=1.",
    )
    loss_temperature: float | None = option(
        None,
        "Temperature of policy and reference in the losses; by default that of sampling.",
        lower=0.0,
        exclusive_lower=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _, values = parse_choice("optimizer", self.optimizer, _OPTIMIZERS)
        for name, value in values.items():
            is_zero_allowed = name not in ("eps", "clip_norm")
            if value < 0 or (name in ("b1", "b2") and value > 1) or not (value or is_zero_allowed):
                raise ValueError(f"--optimizer={self.optimizer}: {name} is out of range")

    @property
    def optimizer_settings(self) -> tuple[str, dict[str, float]]:
        """Name of the optimiser, and all its settings.

        AdamW's eps is 1e-5: 1e-8 inflates the nearly zero gradients of the output layer. Gradients
        of each network are scaled down to the global norm `clip_norm`.
        """
        kind, options = parse_choice("optimizer", self.optimizer, _OPTIMIZERS)
        defaults = {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.0, "clip_norm": 1.0}
        return kind, defaults | options
