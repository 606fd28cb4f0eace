"""Reward statistics and perplexity of a run's policy, or of a model folder, without learning.

  etpo evaluate --run_dir=runs/demo --num_samples=256
  etpo evaluate --model=tiny --dataset=tic_tac_toe
  etpo evaluate --run_dir=runs/demo --num_samples=0 --perplexity
  etpo evaluate --model=FOLDER --prompt_format=all --num_samples=32 --max_steps=1

The settings of the run hold unless a flag gives another value; `--dataset` also takes the place of
the run's own `--task`. Perplexity is measured for the model before training and for the policy
after it, on code that the stand-in was not trained on or on texts of your own.
`--prompt_format=all` compares the formats that the model can be prompted in. For a run, the KL of
the policy to its reference and the share of programs that the run has executed before are measured
on the same samples (`etpo_jax.reproduction.final_policy`).
"""

import collections
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from env import command_line
from env.base import Task, UsageError
from etpo_jax import build, perplexity
from etpo_jax import flags as settings_flags
from etpo_jax.acting import formats
from etpo_jax.acting.episodes import Episodes
from etpo_jax.acting.transitions import Transition
from etpo_jax.algorithms.networks import Networks
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.launch_files import launch_folder
from etpo_jax.renamed import RENAMED
from etpo_jax.reproduction import final_policy
from etpo_jax.roles import Role
from etpo_jax.runs import directory, fingerprint
from etpo_jax.runs.checkpoint import read_role
from etpo_jax.runs.run_log import error_kind
from etpo_jax.runs.steps import choose, read_newest
from models.errors import ModelError

_SECTIONS = ("task", "model", "sampling", "execution")
"""Sections of settings that an evaluation reads."""

_ALL_FORMATS = "all"
_SHOWN_FAILURES = 3

settings_flags.define_flags(sections=_SECTIONS, with_learning=False)
flags.adopt_module_key_flags(settings_flags)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run to evaluate; without it --model is.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "Update of the run; by default the newest.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 256, "Actions to sample and reward; 0 measures perplexity alone.", lower_bound=0
)
_NUM_ENVS = flags.DEFINE_integer("num_envs", 64, "Episodes that run side by side.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling.", lower_bound=0)
_PERPLEXITY = flags.DEFINE_bool("perplexity", False, "Measure perplexity on texts too.")
_PERPLEXITY_FILES = flags.DEFINE_list(
    "perplexity_files",
    [str(perplexity.HELD_OUT)],
    "Text files for --perplexity, or JSON lines with a text each.",
)
_PERPLEXITY_WINDOW = flags.DEFINE_integer(
    "perplexity_window",
    0,
    "Tokens of a window, which slides by half its length; 0 is the model's window, at most 2048.",
    lower_bound=0,
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of tables.")


def main() -> int:
    """Evaluates as the flags say and prints the result."""
    compares = _takes_all_formats()
    config, run_path = _resolve()
    if not _NUM_SAMPLES.value and not _PERPLEXITY.value:
        raise UsageError("--num_samples=0: nothing to do without --perplexity")
    documents = {
        path: perplexity.read_documents(Path(path))
        for path in (_PERPLEXITY_FILES.value if _PERPLEXITY.value else ())
    }
    build.use_compilation_cache()
    mesh = build_mesh(config.model.mesh)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # The executor starts its processes first: they get ready while the model is loaded.
        task = None
        if _NUM_SAMPLES.value:
            task = stack.enter_context(build.open_task(config))
        language = build.load_language(config, mesh)
        trunk: Role = {}
        title = config.model.model
        if run_path is not None:
            folder, keys = run_path / directory.CHECKPOINTS, config.algorithm.policy_keys(config)
            if keys:
                update, trunk = read_newest(
                    folder, _CHECKPOINT.value, lambda path: read_role(path, keys, mesh)
                )
            else:
                update = choose(folder, _CHECKPOINT.value)
            title = f"{run_path} after update {update}"
        answer: dict[str, Any] = {"policy": title, "dataset": config.task.title}
        lines = [f"{title} on {config.task.title}, temperature {config.sampling.temperature:g}"]
        if task is not None and compares:
            by_format = _compare(config, language, trunk, task, mesh)
            answer["prompt_formats"] = by_format
            lines += ["", render_formats(by_format)]
        elif task is not None:
            lines.append(formats.describe(config.task.format_name, language.tokenizer))
            rows, transitions = _sample(config, language, trunk, task, mesh)
            statistics = summarize(rows)
            answer |= statistics
            lines += ["", render(statistics)]
            if run_path is not None:
                measured = _against_run(config, language, trunk, run_path, rows, transitions)
                answer["fresh_samples"] = measured
                lines += ["", final_policy.render(measured)]
        if _PERPLEXITY.value:
            rows = _perplexities(config, language, trunk, documents)
            answer["perplexity"] = rows
            lines += ["", render_perplexity(rows)]
    print(json.dumps(answer, indent=2) if _JSON.value else "\n".join(lines))
    return 0


def _compare(
    config: Config, language: build.Language, trunk: Role, task: Task, mesh: jax.sharding.Mesh
) -> dict[str, dict[str, Any]]:
    """Statistics of each format that the model can be prompted in, with failed programs."""
    _, colon, style = config.task.prompt_format.partition(":")
    compared = {}
    for name in formats.usable(language.tokenizer):
        chosen = config.replace(prompt_format=f"{name}{colon}{style}")
        rows, _ = _sample(chosen, language, trunk, task, mesh)
        failed = [row for row in rows if row["error"]][:_SHOWN_FAILURES]
        failures = [{key: row[key] for key in ("action", "error")} for row in failed]
        compared[name] = {**summarize(rows), "failures": failures}
    return compared


def _sample(
    config: Config, language: build.Language, trunk: Role, task: Task, mesh: jax.sharding.Mesh
) -> tuple[list[dict[str, Any]], list[Transition]]:
    """Rows as in `episodes.jsonl` and transitions of the `--num_samples` actions."""
    prompts = build.make_prompts(config, task, language.tokenizer)
    actor = build.make_actor(config, language, mesh, action_end=prompts.action_end)
    weights = actor.weights(trunk)
    reference_weights = actor.weights({}) if config.samples_with_reference else None
    key = jax.random.key(_SEED.value)
    rows: list[dict[str, Any]] = []
    transitions: list[Transition] = []
    with contextlib.closing(Episodes(task, prompts, _NUM_ENVS.value, _SEED.value)) as episodes:
        while (remaining := _NUM_SAMPLES.value - len(rows)) > 0:
            actions = actor.act(
                weights,
                episodes.encode(),
                jax.random.fold_in(key, len(rows)),
                reference_weights=reference_weights,
            )
            steps = episodes.start(actions.texts[:remaining]).result()
            new, new_rows = episodes.finish(actions, steps)
            transitions += new
            rows += new_rows
    return rows, transitions


def _against_run(
    config: Config,
    language: build.Language,
    trunk: Role,
    run_path: Path,
    rows: Sequence[dict[str, Any]],
    transitions: Sequence[Transition],
) -> dict[str, Any]:
    """Statistics of the samples that depend on the run: KL to its reference, repeated programs."""
    samples = [
        final_policy.Sample(row["episode"], row["t"], row["action"], not row["error"], transition)
        for row, transition in zip(rows, transitions, strict=True)
    ]
    kl, full_kl = final_policy.divergences(config, language, trunk, transitions)
    executed = final_policy.executed_actions(run_path)
    return final_policy.summarize(samples, kl, full_kl, executed)


def _perplexities(
    config: Config,
    language: build.Language,
    trunk: Role,
    documents: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """One row per text file, with the perplexity before training and after it.

    Raises:
      UsageError: the model has no window of this size, or a file has fewer than two tokens.
    """
    largest = language.model.config.max_position_embeddings
    window = _PERPLEXITY_WINDOW.value or min(largest, 2048)
    if not 2 <= window <= largest:
        raise UsageError(f"--perplexity_window={window}: must be from 2 to the model's {largest}")
    scorer = perplexity.Scorer(
        Networks(language.model),
        language.tokenizer.pad_id,
        length=window,
        stride=max(1, window // 2),
    )
    rows = []
    for path, texts in documents.items():
        encoded = [language.tokenizer.encode(text) for text in texts]
        try:
            before = scorer.measure(language.base, {}, encoded)
        except ValueError as error:
            raise UsageError(f"--perplexity_files={path}: {error}") from error
        after = scorer.measure(language.base, trunk, encoded) if trunk else before
        rows.append(
            {
                "text": path,
                "documents": before.num_documents,
                "tokens": before.num_tokens,
                "before": before.value,
                "after": after.value,
            }
        )
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of executed actions.

    Args:
      rows: rows of `episodes.jsonl`.

    Returns:
      Statistics of all actions by name; names with `first_` are statistics of answers to the first
      prompt, names with `reflective_` of answers to an error. The standard error treats episodes
      as independent and the actions of one episode as not; it is None for a single episode.
    """

    def part(name: str, chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rewards = [row["reward"] for row in chosen]
        return {
            f"{name}programs": len(chosen),
            f"{name}reward_mean": float(np.mean(rewards)) if rewards else None,
            f"{name}runnable_rate": float(np.mean([not row["error"] for row in chosen]))
            if rewards
            else None,
        }

    rewards = np.array([row["reward"] for row in rows])
    _, error = final_policy.ratio_mean(rewards, np.array([row["episode"] for row in rows]))
    kinds = collections.Counter(error_kind(row["error"]) for row in rows if row["error"])
    return {
        **part("", rows),
        "reward_standard_error": None if np.isnan(error) else error,
        "reward_best": float(rewards.max()),
        "distinct_programs": len({row["action"] for row in rows}),
        **part("first_", [row for row in rows if row["t"] == 0]),
        **part("reflective_", [row for row in rows if row["t"] > 0]),
        "errors": dict(kinds.most_common()),
    }


def render(statistics: dict[str, Any]) -> str:
    """The statistics as a table for the screen."""
    lines = [f"{'':22}{'programs':>9}{'mean reward':>13}{'runnable':>10}"]
    for label, name in (
        ("all", ""),
        ("first answers", "first_"),
        ("after an error", "reflective_"),
    ):
        lines.append(
            f"{label:22}{statistics[f'{name}programs']:>9}"
            f"{_number(statistics[f'{name}reward_mean'], '.3f'):>13}"
            f"{_number(statistics[f'{name}runnable_rate'], '.0%'):>10}"
        )
    lines += [
        "",
        f"standard error of the mean reward  {_number(statistics['reward_standard_error'], '.3f')}",
        f"best reward                        {statistics['reward_best']:.4f}",
        f"distinct programs                  {statistics['distinct_programs']}",
    ]
    if statistics["errors"]:
        lines.append("errors")
        lines += [f"  {count:5}  {kind}" for kind, count in statistics["errors"].items()]
    return "\n".join(lines)


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def render_formats(by_format: Mapping[str, dict[str, Any]]) -> str:
    """The statistics of each prompt format beside each other, then failed programs of each."""
    columns = "".join(f"{name:>12}" for name in by_format)
    lines = [f"{'prompt format':22}{columns}"]
    for label, key, style in (
        ("programs", "programs", "d"),
        ("running programs", "runnable_rate", ".0%"),
        ("mean reward", "reward_mean", ".3f"),
        ("standard error", "reward_standard_error", ".3f"),
        ("best reward", "reward_best", ".4f"),
        ("distinct programs", "distinct_programs", "d"),
    ):
        values = "".join(f"{_number(found[key], style):>12}" for found in by_format.values())
        lines.append(f"{label:22}{values}")
    for name, found in by_format.items():
        for failure in found["failures"]:
            lines += ["", f"{name} failed: {failure['error']}"]
            lines += [f"    | {line}" for line in failure["action"].splitlines()]
    return "\n".join(lines)


def render_perplexity(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexity before and after as a table for the screen."""
    lines = [f"{'perplexity':>10}{'before':>11}{'after':>11}{'tokens':>11}  text"]
    lines += [
        f"{'':10}{row['before']:>11.4f}{row['after']:>11.4f}{row['tokens']:>11,}  {row['text']}"
        for row in rows
    ]
    return "\n".join(lines)


def _takes_all_formats() -> bool:
    """True if `--prompt_format=all` is given, which becomes auto for the settings."""
    flag = flags.FLAGS["prompt_format"]
    name, colon, style = str(flag.value).partition(":")
    if name != _ALL_FORMATS:
        return False
    flag.value = f"auto{colon}{style}"
    return True


def _resolve() -> tuple[Config, Path | None]:
    """Settings and run directory: the run's settings, overridden by flags, or flags alone."""
    if _RUN_DIR.value is None:
        if _CHECKPOINT.value is not None:
            raise UsageError(f"--checkpoint={_CHECKPOINT.value}: needs --run_dir")
        return settings_flags.from_flags(sections=_SECTIONS), None
    run_path = Path(_RUN_DIR.value).expanduser()
    stored = build.settings_of(directory.open_for_reading(run_path)).to_dict()
    if flags.FLAGS["dataset"].present:
        stored["task"] = ""
    config = settings_flags.from_flags(sections=_SECTIONS, defaults=stored)
    fingerprint.check(run_path, config.model.model)
    return config, run_path


if __name__ == "__main__":
    command_line.run(
        main,
        errors=(ModelError,),
        sections=[
            (
                "Evaluation",
                ["run_dir", "checkpoint", "model", "dataset", "num_samples", "num_envs", "seed"],
            ),
            *settings_flags.help_sections(),
        ],
        flagfile_folders=(launch_folder(),),
        renamed=RENAMED,
    )
