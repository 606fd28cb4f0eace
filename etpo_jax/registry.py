"""Learning algorithms by name: the built-in ones, registered ones, and `package.module:Class`."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from env.base import UsageError
from env.plugins import load_object

_BUILT_IN = "etpo_jax.algorithms"
_ALGORITHMS: dict[str, Any] = {}

_Class = TypeVar("_Class", bound=type)


def register_algorithm(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that makes a subclass of `etpo_jax.Algorithm` available as `--algorithm`.

    Raises:
      ValueError: another class has the name, or a setting of the class is called as a general one.
    """

    def register(algorithm: _Class) -> _Class:
        known = _ALGORITHMS.get(name)
        if known is not None and known.__qualname__ != algorithm.__qualname__:
            raise ValueError(f"algorithm {name!r} is registered already, by {known.__qualname__}")
        algorithm.name = name  # type: ignore[attr-defined]
        _ALGORITHMS[name] = algorithm
        return algorithm

    return register


def find_algorithm(name: str) -> Any:
    """The class of an algorithm, a subclass of `etpo_jax.algorithms.base.Algorithm`.

    Args:
      name: a registered name, or `package.module:Class`, which is imported; modules in the working
        directory are found as well.

    Raises:
      ValueError: there is no such algorithm, or it cannot be imported.
    """
    importlib.import_module(_BUILT_IN)
    if name in _ALGORITHMS:
        return _ALGORITHMS[name]
    if ":" not in name:
        known = ", ".join(_ALGORITHMS)
        raise ValueError(f"--algorithm={name}: must be one of {known}, or package.module:Class")
    try:
        algorithm = load_object(name, flag="--algorithm")
    except UsageError as error:
        raise ValueError(str(error)) from error
    if not (isinstance(algorithm, type) and hasattr(algorithm, "Settings")):
        raise ValueError(f"--algorithm={name}: is no subclass of etpo_jax.Algorithm")
    algorithm.name = name  # type: ignore[attr-defined]
    return algorithm


def algorithms() -> dict[str, Any]:
    """All registered algorithms by name, the built-in ones first."""
    importlib.import_module(_BUILT_IN)
    return dict(_ALGORITHMS)
