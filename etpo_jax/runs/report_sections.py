"""Sections of a run's `report.html` about programs and scores, and how to go on from there."""

import html
import shlex
import textwrap
from collections.abc import Sequence

from env.tables import listing
from etpo_jax.runs import directory, html_page
from etpo_jax.runs.final_scores import FinalScores, Holdout, Scored
from etpo_jax.runs.run_log import RunLog, common_errors

_MAX_ERRORS = 6
_MAX_MESSAGE = 300
_MAX_COLUMNS, _MAX_OPEN_COLUMNS = 200, 15
_SCALES = {
    "r2": "the coefficient of determination",
    "rmse": "1 - RMSE / (RMSE of the mean of the scored rows)",
    "mae": "1 - MAE / (MAE of the median of the scored rows)",
}
_FORMS = {"array": "an array of numbers", "frame": "a pandas DataFrame"}


def scores(log: RunLog) -> str:
    """Scores of the best program beside the baselines; "" where the run has none."""
    found = log.scores
    if found is None:
        return ""
    header = ["", f"mean {found.metric}", "by split"]
    if found.num_holdout_rows:
        header.insert(2, "holdout (95 % interval)")
    rows = [_scores_of(program) for program in found.programs]
    return "\n".join(
        [
            "<h2>Scores beside baselines</h2>",
            *(f"<p>{html.escape(line)}</p>" for line in _explanation(log, found)),
            html_page.table(header, rows),
            f"<p><small>Computed in {found.seconds:.1f} seconds at the end of the run; "
            "scores in the cache of rewards take none.</small></p>",
        ]
    )


def _scores_of(program: Scored) -> list[str]:
    row = [program.name, "failed" if program.reward is None else f"{program.reward:.4f}"]
    if program.holdout is not None:
        row.append(program.holdout.error or _unbroken(str(program.holdout)))
    return [*row, program.error or _unbroken(_numbers(program.split_scores))]


def _unbroken(numbers: str) -> str:
    """Numbers that stay on one line, which a narrow screen scrolls."""
    return numbers.replace(" ", "\u00a0")


def _explanation(log: RunLog, found: FinalScores) -> list[str]:
    lines = []
    if log.best is not None:
        lines.append(
            f"The best program was found at environment step {log.best.env_step} of "
            f"{log.env_steps}, {log.best.env_step / log.env_steps:.0%} into the run."
        )
    lines.append(
        "The baselines are scikit-learn's models with default settings on standardised columns, "
        "on the same splits."
    )
    if found.metric in _SCALES:
        lines.append(f"Scores are {_SCALES[found.metric]}, and at least -1.")
    overstates = "chosen by its reward, which therefore overstates its score on new rows."
    if found.num_holdout_rows:
        lines.append(
            f"No reward has seen the {found.num_holdout_rows} rows of the holdout. For this score "
            f"a program is fitted to the {found.num_rows} rows that rewards use."
        )
        if log.best is not None:
            lines.append(f"The best program was {overstates} The holdout does not.")
    elif log.best is not None:
        lines.append(
            f"The best program was {overstates} This run has no holdout to tell by how much."
        )
    return lines


def leaderboard(log: RunLog) -> str:
    """The best distinct programs, each with its scores, the step and the program itself."""
    if log.best is None:
        return "<h2>Best programs</h2><p>No program has run yet.</p>"
    found = log.top_programs or (log.best.to_json(),)
    holdout = _holdout_of_best(log)
    rows = []
    for place, row in enumerate(found, 1):
        is_best = place == 1
        cells = [str(place), f"{float(row['reward']):.4f}", str(row["env_step"])]
        cells.append(_numbers(row["split_scores"]))
        if holdout is not None:
            cells.append(str(holdout) if is_best else "")
        text = log.best.program if is_best else _dedented(row["action"])
        rows.append((cells, f"<pre>{html.escape(text.rstrip())}</pre>"))
    header, columns = ["", "reward", "step", "scores by split"], "1.5rem 4rem 4rem minmax(0, 1fr)"
    if holdout is not None:
        header.append("holdout (95 % interval)")
        columns += " minmax(0, 13rem)"
    title = "Best program" if len(found) == 1 else f"The {len(found)} best programs"
    return (
        f"<h2>{title}</h2><p>Each program is listed once, with the step that found it. A row opens "
        f"to show its program; <code>{directory.TOP_PROGRAMS}</code> has them as files.</p>"
        + html_page.folded_table(columns, header, rows)
    )


def _holdout_of_best(log: RunLog) -> Holdout | None:
    best = log.scores.best if log.scores else None
    return best.holdout if best else None


def errors(log: RunLog) -> str:
    """The commonest errors with a program that failed so; "" where no program failed."""
    found = common_errors(log.path, _MAX_ERRORS)
    if not found:
        return ""
    total = len(log.episodes.kind_t)
    rows = []
    for error in found:
        message = textwrap.shorten(error.error, _MAX_MESSAGE, placeholder=" ...")
        program = html.escape(_dedented(error.action))
        note = f"<p><small>At environment step {error.env_step}:</small></p>"
        cells = (str(error.count), f"{error.count / total:.1%}", message)
        rows.append((cells, f"{note}<pre>{program}</pre>"))
    failed = sum(bool(kind) for kind in log.episodes.kind_t)
    return (
        f"<h2>Commonest errors</h2><p>{failed} of {total} programs failed. Messages that differ in "
        "numbers only are counted together. A row opens to show the shortest such program.</p>"
        + html_page.folded_table("3rem 3.5rem minmax(0, 1fr)", ("count", "share", "error"), rows)
    )


def table(log: RunLog) -> str:
    """How the columns of a table were read, and what is doubtful; "" without a user's own table."""
    rows = listing.column_rows(log.preparation) if log.preparation else []
    if log.preparation is None or not rows:
        return ""
    about = "".join(f"<p>{html.escape(line)}</p>" for line in listing.about_lines(log.preparation))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in log.preparation["notes"])
    shown = html_page.table(listing.HEADER, rows[:_MAX_COLUMNS])
    if len(rows) > _MAX_COLUMNS:
        shown += f"<p>and {len(rows) - _MAX_COLUMNS} more in {directory.PREPARATION}</p>"
    if len(rows) > _MAX_OPEN_COLUMNS:
        shown = html_page.details(f"{len(rows)} columns", shown)
    form = log.preparation["form"]
    return (
        f"<h2>The table</h2>{about}<p>Programs get its columns as {_FORMS[form]}.</p>"
        + (f"<p>What to know about how it was read:</p><ul>{notes}</ul>" if notes else "")
        + shown
    )


def next_steps(log: RunLog) -> str:
    """Commands that use the run and continue it."""
    run_dir = shlex.quote(str(log.path))
    commands = []
    if log.best is not None and log.preparation is not None:
        script = f"python {shlex.quote(str(log.path / directory.BEST_CODE))}"
        commands += [
            ("Fit the best program to the table and print its scores", script),
            (
                "Predict the rows of a new file with the best program",
                f"{script} --predict NEW.csv --output=predictions.csv",
            ),
            (
                "Fit the best program and keep the model for scikit-learn",
                f"{script} --save model.joblib",
            ),
        ]
    is_here = not log.config.get("endpoint")
    if is_here and not log.is_in_python:
        commands.append(
            (
                "Sample programs of the trained policy and score them",
                f"{log.command('evaluate')} --run_dir={run_dir} --num_samples=256",
            )
        )
    if is_here and "policy_loss" in log.numeric_columns():
        commands.append(
            (
                "Write the trained policy as a Hugging Face folder",
                f"{log.command('export')} --run_dir={run_dir} --output=exported_policy",
            )
        )
    if not log.is_in_python:
        more = 2 * int(log.config.get("num_env_steps") or log.env_steps)
        flags_file = shlex.quote(str(log.path / directory.FLAGS))
        text = f"{log.command('train')} --flagfile={flags_file} --num_env_steps={more}"
        commands.append((f"Continue the run to {more} environment steps", text))
    shown = "".join(html_page.command(note + ":", text) for note, text in commands)
    return f"<h2>How to go on</h2>{shown}" if shown else ""


def _dedented(action: str) -> str:
    """The body of a program at the margin: its first line lacks the four spaces of the others."""
    return textwrap.dedent(f"    {action}").strip("\n")


def _numbers(values: Sequence[float]) -> str:
    return "  ".join(f"{value:.4f}" for value in values)
