"""Pages of one file: they need no network and suit wide and narrow screens, light and dark.

The page's script shows the values of a chart that are nearest to the pointer.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from etpo_jax.runs.charts import Line, page_colour

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def page(
    title: str, subtitle: str, sections: Sequence[str], *, style: str = "", script: str = ""
) -> str:
    """Puts a page together.

    Args:
      title, subtitle: text.
      sections: HTML.
      style, script: CSS and JavaScript that the sections need beside those of every page.
    """
    return _PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        body="\n".join(sections),
        style=style,
        script=script,
    )


def chart(title: str, note: str, svg: str, lines: Iterable[Line]) -> str:
    """Puts a picture of `charts.to_svg` into a card with title, note and legend."""
    legend = "".join(
        f'<span class="{"raw" if line.is_raw else ""}"><i style="background: '
        f'{page_colour(line)}"></i>{html.escape(line.name)}</span>'
        for line in lines
    )
    return (
        f"<figure><figcaption><b>{html.escape(title)}</b> <small>{html.escape(note)}</small>"
        f'</figcaption>{svg}<div class="legend">{legend}</div><output>&nbsp;</output></figure>'
    )


def details(title: str, content: str) -> str:
    """Hides content behind its title, which is text, until the reader opens it."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"
