"""The error texts of the corpus: a committed table, made by `models.stand_in.record`.

With it the corpus is the same wherever it is built, and building it executes nothing.
"""

import functools
import json
import pathlib
from collections.abc import Mapping

PATH = pathlib.Path(__file__).with_suffix(".json")


@functools.cache
def error_texts() -> Mapping[str, str]:
    """`Mistake.key` to the error that the executor reports, a line `Type: message`."""
    return json.loads(PATH.read_text())
