"""Pages of one file: they need no network and suit wide and narrow screens, light and dark.

The page's script shows the values of a chart that are nearest to the pointer.
"""

import html
from collections.abc import Iterable, Sequence
from string import Template

from etpo_jax.runs.charts import Line, page_colour


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


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --text: #1b1f24; --soft: #5b6570; --rule: #dfe3e8;
  --c0: #0072b2; --c1: #009e73; --c2: #d55e00; --c3: #a0508a; --c4: #e69f00; --c5: #8a939c;
  --c6: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --text: #e8eaed; --soft: #9aa4af; --rule: #343b43;
    --c0: #56b4e9; --c1: #2fc79a; --c2: #ff8a50; --c3: #d68fc4; --c4: #f2b632; --c5: #8a939c;
    --c6: #e8eaed;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 70rem;
  background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
p { margin: .4rem 0; }
small, header p, figcaption small { color: var(--soft); }
.tiles, .charts { display: grid; gap: .8rem; margin: 1.2rem 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.tile, figure, pre, details {
  background: var(--card); border: 1px solid var(--rule); border-radius: .5rem;
  padding: .7rem .9rem;
}
.tile b { display: block; font-size: 1.6rem; line-height: 1.3; }
.tile small { display: block; line-height: 1.3; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font-family: system-ui, sans-serif !important; }
.cursor { stroke: var(--soft); visibility: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.legend .raw i { opacity: .4; }
.legend i {
  display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .35rem;
  vertical-align: -.08rem;
}
output { display: block; min-height: 1.4em; font-size: .85rem; color: var(--soft); }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
details { margin: .5rem 0; }
details pre { margin-bottom: 0; border: 0; padding: 0; }
summary { cursor: pointer; }
.scroll { overflow-x: auto; }
td {
  padding: .1rem 1.2rem .1rem 0; font-size: .9rem; vertical-align: top; overflow-wrap: anywhere;
}
td:first-child { white-space: nowrap; color: var(--soft); }
$style
</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
$body
<script>
for (const svg of document.querySelectorAll("svg[data-readouts]")) {
  const points = JSON.parse(svg.dataset.readouts);
  const cursor = svg.querySelector(".cursor");
  const output = svg.closest("figure").querySelector("output");
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    cursor.setAttribute("transform", "translate(" + near[0] + ")");
    cursor.style.visibility = "visible";
    output.textContent = near[1];
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
}
$script
</script>
</body>
</html>
""")
