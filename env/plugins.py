"""Objects of the user's that a flag names as `package.module:attribute`."""

import importlib
import sys
from pathlib import Path
from typing import Any

from env.base import UsageError


def load_object(spec: str, *, flag: str) -> Any:
    """Imports the object that `spec` names.

    The module is imported into this process, from the Python path or the current folder.

    Args:
      spec: `package.module:attribute`.
      flag: the flag whose value `spec` is, for messages; such as `--task`.

    Raises:
      UsageError: when `spec` has another form, or the object cannot be imported.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{flag}={spec}: must have the form package.module:attribute")
    if module_name.endswith(".py"):
        dotted = ".".join(Path(module_name).with_suffix("").parts)
        raise UsageError(f"{flag}={spec}: names a file; did you mean {dotted}:{attribute}?")
    # `python -m` puts the current folder on the path; an installed command does not.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the module runs the user's own code, which may raise anything
        reason = " ".join(str(error).split())
        raise UsageError(f"{flag}={spec}: {type(error).__name__}: {reason}") from None
