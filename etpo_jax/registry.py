"""Learning algorithms by name: the built-in ones, registered ones, and `package.module:Class`."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from env.plugins import load_object

_BUILT_IN = "etpo_jax.algorithms"
_ALGORITHMS: dict[str, Any] = {}
# Arguments of `etpo_jax.Trainer` and flags of programs, which no setting may be called.
_RESERVED = (
    *("self", "prompts", "reward", "callbacks", "overwrite", "quiet", "hosts", "dry_run"),
    *(
        "device",
        "aot",
        "aot_programs",
        "aot_timeout_s",
        "aot_folder",
        "help",
        "version",
        "flagfile",
    ),
)

_Class = TypeVar("_Class", bound=type)


def register_algorithm(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that makes a subclass of `etpo_jax.Algorithm` available as `--algorithm`.

    A class may be registered again, as by a notebook's cell that is executed twice.

    Raises:
      ValueError: another class has the name, or the class or its settings cannot be used.
    """

    def register(algorithm: _Class) -> _Class:
        _check(name, algorithm)
        known = _ALGORITHMS.get(name)
        if known is not None and _identity(known) != _identity(algorithm):
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
      ValueError: there is no such algorithm, or it cannot be imported or used.
    """
    importlib.import_module(_BUILT_IN)
    if name in _ALGORITHMS:
        return _ALGORITHMS[name]
    if not isinstance(name, str) or ":" not in name:
        known = ", ".join(_ALGORITHMS)
        raise ValueError(f"--algorithm={name}: must be one of {known}, or package.module:Class")
    algorithm = load_object(name, flag="--algorithm")
    _check(name, algorithm)
    if "name" not in vars(algorithm):  # a registered class keeps its name
        algorithm.name = name
    return algorithm


def stored_name(name: str) -> str:
    """The name under which other programs find an algorithm: `module:Class` if it is registered.

    Built-in algorithms keep their name, and so do classes that no other program can import.
    """
    algorithm = _ALGORITHMS.get(name)
    if algorithm is None or algorithm.__module__.startswith(f"{_BUILT_IN}."):
        return name
    if algorithm.__module__ == "__main__" or not algorithm.__qualname__.isidentifier():
        return name
    return f"{algorithm.__module__}:{algorithm.__qualname__}"


def algorithms() -> dict[str, Any]:
    """All registered algorithms by name, the built-in ones first."""
    importlib.import_module(_BUILT_IN)
    return dict(_ALGORITHMS)


def _identity(algorithm: type) -> tuple[str, str]:
    return algorithm.__module__, algorithm.__qualname__


def _check(name: str, algorithm: Any) -> None:
    """Checks that an algorithm can run and that its settings are read.

    Raises:
      ValueError: saying what is wrong.
    """
    # Both modules import this one.
    base = importlib.import_module(f"{_BUILT_IN}.base")
    sections = importlib.import_module("etpo_jax.config").SECTIONS.values()
    is_algorithm = isinstance(algorithm, type) and issubclass(algorithm, base.Algorithm)
    if not is_algorithm:
        raise ValueError(f"--algorithm={name}: is no subclass of etpo_jax.Algorithm")
    if missing := sorted(algorithm.__abstractmethods__):
        raise ValueError(
            f"--algorithm={name}: {algorithm.__qualname__} does not define {', '.join(missing)}"
        )
    settings = algorithm.Settings
    if any(isinstance(value, dataclasses.Field) for value in vars(settings).values()):
        raise ValueError(
            f"--algorithm={name}: {settings.__qualname__} needs @dataclasses.dataclass(frozen=True)"
        )
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            raise ValueError(
                f"--algorithm={name}: --{field.name} is no etpo_jax.option(default, help)"
            )
    for field in settings.names():
        if field in _RESERVED or any(field in section.names() for section in sections):
            raise ValueError(
                f"--algorithm={name}: --{field} is taken; call that of "
                f"{settings.__qualname__} otherwise"
            )
