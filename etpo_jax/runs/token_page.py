"""The token inspector of `report.html`: actions whose tokens are coloured by their credit.

The credit of a token is its target less the soft value before it.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FILE = Path(__file__)
STYLE = _FILE.with_suffix(".css").read_text(encoding="utf-8")
SCRIPT = _FILE.with_suffix(".js").read_text(encoding="utf-8")
_END = "end"
_SHOWN = ("target", "value", "q", "log_prob", "log_reference", "kl")


def inspector(actions: Sequence[dict[str, Any]]) -> str:
    """Makes the section of the page, "" without actions.

    Args:
      actions: rows of `tokens.jsonl`.
    """
    if not actions:
        return ""
    credits = [_credit(token) for action in actions for token in action["tokens"]]
    largest = max(map(abs, credits), default=0.0) or 1.0
    return "\n".join(
        [
            "<h2>Credit of each token</h2>",
            "<p>The newest actions of the run. The colour of a token is the stronger, the more its "
            "target differs from the soft value before it: "
            '<span class="token up" style="--w:.6">better</span> or '
            '<span class="token down" style="--w:.6">worse</span> than the policy expected. '
            "Below an action stand the numbers of the token with the strongest colour; point at "
            "another token or tap it to see its own.</p>",
            *(_action(action, largest) for action in actions),
        ]
    )


def _action(action: dict[str, Any], largest: float) -> str:
    tokens = action["tokens"]
    spans = "".join(_span(index, token, largest) for index, token in enumerate(tokens))
    numbers = [
        [_label(token["text"]), round(_credit(token), 4)]
        + [token[name] for name in _SHOWN]
        + [[[_label(text), probability, q] for text, probability, q in token["top"]]]
        for token in tokens
    ]
    opened = max(range(len(tokens)), key=lambda i: abs(_credit(tokens[i])), default=0)
    outcome = "the episode continued" if action["continues"] else "the episode ended"
    title = f"reward {action['reward']:.4f}, {len(tokens)} tokens, {outcome}"
    return (
        f'<div class="inspector" data-open="{opened}" '
        f'data-tokens="{html.escape(json.dumps(numbers))}">'
        f"<p><small>{title}</small></p>"
        f"<details><summary>prompt</summary><pre>{html.escape(action['prompt'])}</pre></details>"
        f'<pre class="tokens">{spans}</pre><div class="token-detail" aria-live="polite"></div>'
        "</div>"
    )


def _span(index: int, token: dict[str, Any], largest: float) -> str:
    credit = _credit(token)
    # The square root brings out small credits beside a single large one.
    weight = (abs(credit) / largest) ** 0.5
    shown = html.escape(token["text"]) or f'<i class="mark">{_END}</i>'
    # A line break has no width to point at.
    shown = shown.replace("\n", '<i class="mark">\u21b5</i>\n')
    side = "up" if credit > 0 else "down"
    return (
        f'<span class="token {side}" tabindex="0" data-index="{index}" '
        f'style="--w:{weight:.2f}">{shown}</span>'
    )


def _credit(token: dict[str, Any]) -> float:
    return float(token["target"]) - float(token["value"])


def _label(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1] if text else _END
