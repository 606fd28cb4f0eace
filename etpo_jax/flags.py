"""Settings as absl flags: every field of the sections in `etpo_jax.config` is one flag."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from absl import flags

from env.base import UsageError
from etpo_jax import registry
from etpo_jax.config import SECTIONS, Config
from etpo_jax.learning import LearningConfig
from etpo_jax.settings import Section

IMPORTANT = (
    "run_dir",
    "algorithm",
    "num_env_steps",
    "num_envs",
    "seed",
    "dataset",
    "target",
    "model",
    "finetune",
    "beta",
    "policy_learning_rate",
    "critic_learning_rate",
    "dry_run",
    "overwrite",
)
"""Flags that `--help` shows first."""


def define_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    sections: Iterable[str] = SECTIONS,
    *,
    with_learning: bool = True,
) -> None:
    """Defines one flag for each setting, as key flags of the calling program.

    Args:
      flag_values: the registry of flags.
      sections: names of sections of `Config`.
      with_learning: whether the settings of all registered algorithms are flags too.
    """
    for name in sections:
        _define_section(SECTIONS[name], flag_values)
    if with_learning:
        for algorithm in registry.algorithms().values():
            _define_section(algorithm.Settings, flag_values, of_algorithms=True)


def define_chosen(arguments: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the settings of an algorithm that the command line names as package.module:Class.

    Args:
      arguments: the command line, flagfiles expanded.
      flag_values: the registry of flags, on which `define_flags` was called.

    Raises:
      UsageError: there is no such algorithm.
    """
    chosen = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name, has_value, value = argument.partition("=")
        if name in ("--algorithm", "-algorithm"):
            chosen = value if has_value else following
    if not chosen or ":" not in chosen:
        return
    try:
        settings = registry.find_algorithm(chosen).Settings
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name in settings.names():
        if name in flag_values:  # an algorithm of the same name for another setting
            delattr(flag_values, name)
    _define_section(settings, flag_values, of_algorithms=True)


def from_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    *,
    sections: Iterable[str] = SECTIONS,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """The settings that the parsed flags describe.

    Args:
      flag_values: the registry of flags.
      sections: as for `define_flags`; other programs may have flags of the same names.
      defaults: values of settings that the command line does not give, such as a run's.

    Raises:
      UsageError: naming the flag, its value and what is allowed; also for a flag that the chosen
        algorithm does not read.
    """
    general = [name for section in sections for name in SECTIONS[section].names()]
    try:
        names = [*general, *_learning_names(flag_values)]
        given = {
            name: flag_values[name].value
            for name in names
            if name in flag_values and flag_values[name].present
        }
        return Config.from_dict({**(defaults or {}), **given})
    except ValueError as error:
        raise UsageError(str(error)) from error


def help_sections(flag_values: flags.FlagValues = flags.FLAGS) -> list[tuple[str, list[str]]]:
    """Titles and names of flags in the order of `--help`: what matters most comes first."""
    important = [name for name in IMPORTANT if name in flag_values]
    listed = [("What matters most", important)] if "algorithm" in flag_values else []
    groups = [(section, section.names()) for section in SECTIONS.values()]
    groups.append((LearningConfig, LearningConfig.names()))
    own: dict[tuple[str, ...], list[str]] = {}
    for name in _learning_names(flag_values):
        if name not in LearningConfig.names():
            own.setdefault(tuple(_readers(name)), []).append(name)
    titles = [(_title(section), names) for section, names in groups]
    titles += [
        (f"Settings of {' and '.join(readers) or flag_values['algorithm'].value}", own[readers])
        for readers in own
    ]
    for title, names in titles:
        seen = {name for _, names in listed for name in names}
        rest = [name for name in names if name in flag_values and name not in seen]
        if rest:
            listed.append((title, rest))
    return listed


def _title(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().rstrip(".")


def _learning_names(flag_values: flags.FlagValues) -> list[str]:
    """Names of the flags that belong to algorithms, each once."""
    chosen = str(flag_values["algorithm"].value) if "algorithm" in flag_values else ""
    settings = [algorithm.Settings for algorithm in registry.algorithms().values()]
    if ":" in chosen:
        settings.append(registry.find_algorithm(chosen).Settings)
    return list(dict.fromkeys(name for section in settings for name in section.names()))


def _readers(name: str) -> list[str]:
    return [
        algorithm
        for algorithm, found in registry.algorithms().items()
        if name in found.Settings.names()
    ]


def _define_section(
    section: type[Section], flag_values: flags.FlagValues, *, of_algorithms: bool = False
) -> None:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        if of_algorithms and field.name in flag_values:
            continue
        default, help_text = field.default, field.metadata["help"]
        if of_algorithms:
            help_text += _defaults_text(field)
            default = None
        _define(field, hints[field.name], default, help_text, flag_values)


def _defaults_text(field: dataclasses.Field) -> str:
    """The defaults of a setting for its help, such as " (default 0.06; poad 0.05)"."""
    defaults: dict[Any, list[str]] = {}
    for algorithm in _readers(field.name):
        settings = registry.algorithms()[algorithm].Settings
        (other,) = (other for other in dataclasses.fields(settings) if other.name == field.name)
        defaults.setdefault(other.default, []).append(algorithm)
    defaults = defaults or {field.default: []}
    for nothing in (None, ""):
        defaults.pop(nothing, None)
    if not defaults:
        return ""
    (first, _), *others = defaults.items()
    parts = [f"default {_shown(first)}"]
    parts += [f"{' and '.join(names)} {_shown(value)}" for value, names in others]
    return f" ({'; '.join(parts)})"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _define(
    field: dataclasses.Field, hint: Any, default: Any, help_text: str, flag_values: flags.FlagValues
) -> None:
    arguments: dict[str, Any] = {"name": field.name, "default": default, "help": help_text}
    arguments["flag_values"] = flag_values
    kinds = get_args(hint) or (hint,)
    if field.metadata["choices"]:
        flags.DEFINE_enum(enum_values=list(field.metadata["choices"]), **arguments)
    elif bool in kinds:
        flags.DEFINE_bool(**arguments)
    elif int in kinds:
        flags.DEFINE_integer(**arguments)
    elif float in kinds:
        flags.DEFINE_float(**arguments)
    else:
        flags.DEFINE_string(**arguments)
