"""Ends of actions that tasks recognise in the text, beside the stop tokens of a model.

An ending is named by `Task.action_end`. Decoding decides it token by token from tables; this module
decides it on whole texts.
"""

import re

ACTION_ENDS = ("", "function", "fence")
"""Values of `Task.action_end`: stop tokens only, leaving the function, closing the code fence."""

# A closing bracket at the margin continues an expression: no statement begins with one.
_FIRST_LINE_OUTSIDE = re.compile(r"[\n\r](?=[^ \t\f\n\r)\]}])")
_LINE = re.compile(r"[^\n\r]*[\n\r]")
_OPENING_FENCE = re.compile(r"```+[^`]*[\n\r]")
_FENCE = "```"


def program_text(action_text: str, ending: str) -> str:
    """Returns an action without the text that ends it, and without the white space before that.

    "function" cuts at the first line break that is followed by a character which stands at the
    margin and is neither white space nor a closing bracket; the first line continues the prompt and
    never ends the action. "fence" cuts at the three backticks that close the first fenced block. A
    text that goes on to its end is returned unchanged.

    Args:
      action_text: text of all tokens of an action.
      ending: one of `ACTION_ENDS`.

    Raises:
      ValueError: an unknown ending.
    """
    end = _end(action_text, ending)
    return action_text if end is None else action_text[:end].rstrip()


def _end(text: str, ending: str) -> int | None:
    """Index of the first character of the ending; None for a text that has not ended."""
    if ending not in ACTION_ENDS:
        raise ValueError(
            f"action_end={ending!r}: must be one of {', '.join(map(repr, ACTION_ENDS))}"
        )
    if ending == "function":
        found = _FIRST_LINE_OUTSIDE.search(text)
        return None if found is None else found.start()
    if ending == "fence":
        for line in _LINE.finditer(text):
            # The first long run of backticks decides: inline code has more behind it.
            first = line[0].find(_FENCE)
            if first >= 0 and _OPENING_FENCE.fullmatch(line[0], first):
                end = text.find(_FENCE, line.end())
                return None if end < 0 else end
    return None
