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

_MODULES = {
    "Algorithm": "etpo_jax.algorithms.base",
    "Config": "etpo_jax.config",
    "Experience": "etpo_jax.algorithms.base",
    "FunctionTask": "env.tasks.function_task",
    "Hyperparameters": "etpo_jax.algorithms.base",
    "LearningConfig": "etpo_jax.learning",
    "Result": "etpo_jax.trainer",
    "Section": "etpo_jax.settings",
    "State": "env.base",
    "Step": "env.base",
    "Task": "env.base",
    "Trainer": "etpo_jax.trainer",
    "UsageError": "env.base",
    "option": "etpo_jax.settings",
    "register_algorithm": "etpo_jax.registry",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'etpo_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
