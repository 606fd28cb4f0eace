"""Sections of a grid's `report.html`: curves, tables, best programs, links to the runs."""

import html
import os
from collections.abc import Iterable
from pathlib import Path

from etpo_jax.reproduction import figures
from etpo_jax.reproduction.curves import X_LABEL, Curves
from etpo_jax.reproduction.measures import Results, Run
from etpo_jax.reproduction.tables import Table
from etpo_jax.runs import charts, directory, html_page

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def cards(made: Iterable[tuple[str, Curves]]) -> str:
    """Cards with the curves of each figure, below its title."""
    cards = []
    for title, curves in made:
        lines = figures.lines_of(curves)
        figure, (axes,) = charts.figure(6.1, 3.6)
        charts.label(axes, x=X_LABEL, y=curves.y_label)
        charts.draw_lines(axes, curves.env_step_k, lines)
        svg = charts.to_svg(figure, charts.readouts(curves.env_step_k, lines))
        cards.append(html_page.chart(title, curves.note, svg, lines))
    return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


def table(made: Table) -> str:
    """A table below its title; a narrow screen scrolls it sideways."""
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in made.notes)
    return f"<h2>{html.escape(made.title)}</h2>{html_page.table(made.header, made.rows)}{notes}"


def evolution(run: Run) -> str:
    """The better programs of a run (Figure 1), each with its changes against the one before."""
    parts = [f"<h2>Figure 1: evolution of the best program of {html.escape(str(run.cell))}</h2>"]
    for row, changes in figures.changes_of(run):
        title = f"{float(row['reward']):.4f} at environment step {row['env_step']}"
        lines = "\n".join(map(_change, changes))
        parts.append(html_page.details(title, f"<pre>{lines}</pre>"))
    return "\n".join(parts)


def runs(results: Results, folder: Path) -> str:
    """A table of all runs with links to their reports, relative to the grid's folder."""
    rows = []
    for by_dataset in results.values():
        for members in by_dataset.values():
            for run in members:
                report = run.path / directory.REPORT
                text = html.escape(str(run.cell))
                if report.exists():
                    link = html.escape(os.path.relpath(report, folder))
                    text = f'<a href="{link}">{text}</a>'
                last, best = (run.measures[name] for name in ("reward_fifth_5", "reward_best"))
                rows.append(f"<tr><td>{text}</td><td>{last:.3f}</td><td>{best:.4f}</td></tr>")
    head = "<tr><th>run</th><th>mean reward, last fifth</th><th>best reward</th></tr>"
    content = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    return html_page.details(f"All {len(rows)} runs", content)


def command(text: str, commit: str | None) -> str:
    """The command that makes the grid, and the commit of the code."""
    return (
        f"<h2>Repeat this grid</h2><pre>{html.escape(text)}</pre>"
        f"<p>Commit of the code: <code>{html.escape(commit or 'unknown')}</code></p>"
    )


def _change(line: str) -> str:
    kind = {"+ ": "added", "- ": "removed"}.get(line[:2])
    text = html.escape(line)
    return f'<span class="{kind}">{text}</span>' if kind else text
