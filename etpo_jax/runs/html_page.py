"""Pages of one file: they need no network and suit wide and narrow screens, light and dark.

The page's script shows the values of a chart that are nearest to the pointer, and copies commands.
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; a narrow screen scrolls it sideways."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f'<div class="scroll data"><table><tr>{head}</tr>{body}</table></div>'


def folded_table(
    columns: str, header: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]
) -> str:
    """A table whose rows open.

    Args:
      columns: widths in CSS, one per column; on a narrow screen the last gets a line of its own.
      header: texts.
      rows: texts of each row, and the HTML that opens below it.
    """

    def cells(texts: Sequence[str]) -> str:
        return "".join(f"<span>{html.escape(text)}</span>" for text in texts)

    body = "".join(
        f"<details><summary>{cells(texts)}</summary>{content}</details>" for texts, content in rows
    )
    return (
        f'<div class="folded" style="--columns: {columns}">'
        f'<div class="head">{cells(header)}</div>{body}</div>'
    )


def command(note: str, text: str) -> str:
    """A command below what it does, with a button that copies it."""
    return (
        f'<div class="command"><p>{html.escape(note)}</p><pre>{html.escape(text)}</pre>'
        '<button type="button">Copy</button></div>'
    )
