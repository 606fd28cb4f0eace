"""The code that applies a preparation, as a text for scripts that stand alone."""

import re
from pathlib import Path

_MODULES = ("halves", "table_files", "prepared")


def script_text() -> str:
    """Returns the source of `env.tables.prepared` and of what it needs, without this project."""
    folder = Path(__file__).parent
    texts = [(folder / f"{name}.py").read_text("utf-8") for name in _MODULES]
    imported = re.compile(
        r"^from env\.tables\.\w+ import .*\n|^__all__ = \[[^]]*\]\n", re.MULTILINE
    )
    return "\n\n".join(imported.sub("", text).strip() for text in texts) + "\n"
