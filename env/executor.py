"""Executors, which run the programs that an agent writes and score them (Eq. 10).

These are the public names of the folder `env.execution`.
"""

from env.execution.code_executor import CodeExecutor
from env.execution.program import BUILD_MODEL, ProgramTemplate
from env.execution.ray_executor import RayExecutor
from env.execution.results import FAILURE_REWARD, ExecutionResult, Executor
from env.execution.reward_cache import CachedExecutor
from env.execution.scheduler import ExecutorError
from env.sandbox.limits import Limits

__all__ = [
    "BUILD_MODEL",
    "FAILURE_REWARD",
    "CachedExecutor",
    "CodeExecutor",
    "ExecutionResult",
    "Executor",
    "ExecutorError",
    "Limits",
    "ProgramTemplate",
    "RayExecutor",
]
