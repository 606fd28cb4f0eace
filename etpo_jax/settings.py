"""Declaring settings: fields with help and range, sections of them, and `name=value` texts."""

import dataclasses
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_type_hints


def option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    lower: float | None = None,
    upper: float | None = None,
    exclusive_lower: bool = False,
    may_differ: bool = False,
    traced: bool = False,
    parse: Callable[[str, str], Any] | None = None,
) -> Any:
    """A dataclass field that is a setting.

    Args:
      default: the value where none is given.
      help_text: what `--help` says.
      choices: the allowed values of a text.
      lower, upper: the allowed range of a number.
      exclusive_lower: whether `lower` itself is not allowed.
      may_differ: whether a run may be resumed with another value.
      traced: whether compiled programs take the number as an argument, so that another value does
        not compile again (`etpo_jax.algorithms.base.Hyperparameters`).
      parse: reads the text of the flag of this name, and raises ValueError for a wrong one. A
        whole number may be given in place of its text.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "lower": lower,
        "upper": upper,
        "exclusive_lower": exclusive_lower,
        "may_differ": may_differ,
        "traced": traced,
        "parse": parse,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all sections: checks type and range of each field when it is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def check(self, config: Any) -> None:
        """Checks the section against the others.

        Args:
          config: all settings, an `etpo_jax.config.Config`.

        Raises:
          ValueError: naming flag and value.
        """
        del config

    def traced_numbers(self) -> dict[str, float]:
        """Numbers that compiled programs take as arguments, by name."""
        fields = dataclasses.fields(self)
        return {
            field.name: getattr(self, field.name) for field in fields if field.metadata["traced"]
        }

    def changed(self) -> list[str]:
        """Names of the settings that do not have their default."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]

    @classmethod
    def names(cls) -> list[str]:
        """Names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """The value as its type has it.

    Raises:
      ValueError: naming the flag, its value and what is allowed.
    """
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # NumPy's numbers count as Python's.
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    meta = field.metadata
    if meta["parse"]:
        value = str(value) if isinstance(value, numbers.Integral) else value
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not is_right:
        raise ValueError(f"--{field.name}={value}: must be {_TYPE_NAMES[kind]}")
    if meta["parse"]:
        meta["parse"](field.name, value)
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"--{field.name}={value}: must be one of {', '.join(meta['choices'])}")
    if kind not in (int, float):
        return value
    lower, upper = meta["lower"], meta["upper"]
    too_low = lower is not None and (value <= lower if meta["exclusive_lower"] else value < lower)
    too_high = upper is not None and value > upper
    if too_low or too_high or not math.isfinite(value):
        sign = ">" if meta["exclusive_lower"] else ">="
        parts = [f"{sign} {lower:g}"] if lower is not None else []
        parts += [f"<= {upper:g}"] if upper is not None else []
        if math.isinf(value) and not too_low:
            parts.append("finite")
        shown = f"{value:g}" if kind is float else value
        raise ValueError(f"--{field.name}={shown}: must be {' and '.join(parts) or 'a number'}")
    return value


def parse_choice(
    flag: str, value: str, choices: Mapping[str, Mapping[str, type]]
) -> tuple[str, dict[str, Any]]:
    """Splits a value such as `lora:rank=16,alpha=32` into its name and the settings behind it.

    Args:
      flag: the setting that the value belongs to, for messages.
      value: one of the names, alone or with `name=value` pairs after a colon.
      choices: for each allowed name, the types of its settings, see `parse_options`.

    Raises:
      ValueError: naming the flag, its value and what is allowed.
    """
    name, _, text = value.partition(":")
    if name not in choices:
        with_settings = ", ".join(known for known, kinds in choices.items() if kinds)
        raise ValueError(
            f"--{flag}={value}: must be one of {', '.join(choices)}; settings of {with_settings} "
            "follow after a colon"
        )
    try:
        return name, parse_options(flag, text, choices[name])
    except ValueError as error:
        reason = str(error).removeprefix(f"--{flag}={text}: ")
        raise ValueError(f"--{flag}={value}: {reason}") from None


class Interval(NamedTuple):
    """A number of updates or of seconds between two events; automatic where both are None."""

    number: int | None = None
    seconds: float | None = None


_SECONDS = {"s": 1, "min": 60, "h": 3600}


def parse_interval(flag: str, value: str) -> Interval:
    """Reads `auto`, a number of updates such as `10`, or a time such as `90s`, `20min` or `2h`.

    Raises:
      ValueError: naming the flag, its value and what is allowed.
    """
    if value == "auto":
        return Interval()
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|)", value)
    number = float(found[1]) if found else 0.0
    if not found or number <= 0 or not (found[2] or number.is_integer()):
        raise ValueError(
            f"--{flag}={value}: must be auto, a number of updates such as 10, or a time such as "
            "90s, 20min or 2h"
        )
    return Interval(seconds=number * _SECONDS[found[2]]) if found[2] else Interval(int(number))


def parse_options(flag: str, text: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Values of a text such as `rank=16,alpha=32`.

    Args:
      flag: the setting that the text belongs to, for messages.
      text: name=value pairs, separated by commas; may be empty.
      kinds: type of each allowed name: int, float or str.

    Raises:
      ValueError: naming the flag, the pair that is wrong and what is allowed.
    """
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, has_value, value = (part.strip() for part in pair.partition("="))
        if name not in kinds or not has_value or name in values:
            allowed = ", ".join(f"{known}=..." for known in kinds)
            wanted = f"must be one of {allowed}, each once" if kinds else "is not a setting of it"
            raise ValueError(f"--{flag}={text}: {pair!r} {wanted}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            kind = _TYPE_NAMES[kinds[name]]
            raise ValueError(f"--{flag}={text}: {name} must be {kind}") from None
        if kinds[name] is float and not math.isfinite(values[name]):
            raise ValueError(f"--{flag}={text}: {name} must be finite")
    return values


def with_default(section: type[Section], name: str, default: Any) -> Any:
    """The field of another section with another default, for a section that inherits from it."""
    (field,) = (field for field in dataclasses.fields(section) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)
