"""The listing of flags that `--help` prints."""

import shutil
import textwrap
from collections.abc import Sequence

from absl import flags

# Libraries that define flags of their own in absl's global registry.
_LIBRARIES = ("absl", "orbax")
_GENERAL = {
    "-h, --help": "Print this help and exit.",
    "--version": "Print the version and exit.",
    "--flagfile=FILE": "Read flags from a file, one on a line; later flags win over earlier ones.",
}
_HELP_COLUMN = 34


def own_flags(flag_values: flags.FlagValues) -> dict[str, flags.Flag]:
    """Flags of the program in the order of their definition, without those of libraries."""
    return {
        flag.name: flag
        for module, defined in flag_values.flags_by_module_dict().items()
        for flag in defined
        if module.split(".")[0] not in _LIBRARIES
        and flag.name not in ("help", "version", "flagfile")
    }


def listing(
    flag_values: flags.FlagValues, sections: Sequence[tuple[str, Sequence[str]]] | None = None
) -> str:
    """The text of `--help` below the program's description.

    Each flag stands as `--name=DEFAULT`, or as `--name` if it is unset, beside its help and
    choices, under the title of its section. Flags that no section names come last; names that are
    no flags are passed over.
    """
    own = own_flags(flag_values)
    listed = [
        (title, [own.pop(name) for name in names if name in own]) for title, names in sections or ()
    ]
    listed.append(("Other flags" if sections else "Flags", list(own.values())))
    text = []
    for title, members in listed:
        if members:
            text += ["", f"{title}:", *(_entry(*_described(flag)) for flag in members)]
    text += ["", "General:", *(_entry(*item) for item in _GENERAL.items())]
    return "\n".join(text[1:])


def _described(flag: flags.Flag) -> tuple[str, str]:
    """`--name=DEFAULT` and the help of a flag with its choices."""
    option = f"--{flag.name}"
    if flag.default not in (None, "", []):
        default = flag.serializer.serialize(flag.default) if flag.serializer else flag.default
        option += f"={str(default).lower() if flag.boolean else default}"
    if not isinstance(flag.parser, flags.EnumParser):
        return option, flag.help
    values = flag.parser.enum_values
    # absl puts the choices in front of the help.
    text = flag.help.removeprefix(f"<{'|'.join(values)}>: ")
    return option, f"{text} ({', '.join(values)})"


def _entry(option: str, text: str) -> str:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 100)
    indent = " " * _HELP_COLUMN
    lines = textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    head = f"  {option}"
    if len(head) + 2 > _HELP_COLUMN or not lines:
        return "\n".join([head, *lines])
    return "\n".join([head.ljust(_HELP_COLUMN) + lines[0].lstrip(), *lines[1:]])
