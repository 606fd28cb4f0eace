"""Entropy-Regularized Token-Level Policy Optimization (arXiv 2402.06700) in JAX.

    trainer = etpo_jax.Trainer(prompts=["..."], reward=reward, run_dir="runs/mine")
    result = trainer.train()

Names are imported when they are first used, so that `import etpo_jax` itself starts nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from env.version import __version__

if TYPE_CHECKING:
    from env.base import State, Step, Task, UsageError
    from env.tasks.function_task import FunctionTask
    from etpo_jax.algorithms.base import Algorithm, Experience, Hyperparameters
    from etpo_jax.config import Config
    from etpo_jax.learning import LearningConfig
    from etpo_jax.registry import register_algorithm
    from etpo_jax.settings import Section, option
    from etpo_jax.trainer import Result, Trainer

_NAMES = {
    "env.base": ("State", "Step", "Task", "UsageError"),
    "env.tasks.function_task": ("FunctionTask",),
    "etpo_jax.algorithms.base": ("Algorithm", "Experience", "Hyperparameters"),
    "etpo_jax.config": ("Config",),
    "etpo_jax.learning": ("LearningConfig",),
    "etpo_jax.registry": ("register_algorithm",),
    "etpo_jax.settings": ("Section", "option"),
    "etpo_jax.trainer": ("Result", "Trainer"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Algorithm",
    "Config",
    "Experience",
    "FunctionTask",
    "Hyperparameters",
    "LearningConfig",
    "Result",
    "Section",
    "State",
    "Step",
    "Task",
    "Trainer",
    "UsageError",
    "__version__",
    "option",
    "register_algorithm",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'etpo_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
