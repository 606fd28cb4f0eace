"""Compares settings of training on the stand-in: the study behind the values of launch/tiny.flags.

  python -m benchmarks.presets --settings='tiny.flags;path all' --seeds=0,1,2

Every run has a directory of its own under --output, so that an interrupted study goes on where it
stopped. The table has one row per setting, means over seeds with the seeds' range.
"""

import collections
import csv
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks import measured_train
from env import command_line
from env.base import UsageError

_RETRACE = ["--critic_loss=retrace", "--q_parameterization=residual"]
_FREE = ["--trust_region=0"]
# The correction of the policy's loss needs targets of tokens, which a path has not; and most of a
# long replay is far from the policy.
_PATH = [
    *("--critic_loss=path", "--q_parameterization=dueling", "--replay_size=480"),
    "--policy_loss=exact",
    *_FREE,
]
_TIED = [*_PATH, "--tie_policy", "--critic_learning_rate=5e-4"]
_OPEN = ["--support_threshold=0"]
SETTINGS = {
    "tiny.flags": [],
    "no trust region": _FREE,
    "no trust region, beta 0.07": [*_FREE, "--beta=0.07"],
    "reflection": ["--algorithm=reflection"],
    "one_step": ["--critic_loss=one_step"],
    "retrace, beta 0.1": [*_RETRACE, "--beta=0.1"],
    "retrace, no support mask": [*_RETRACE, *_OPEN],
    "retrace, dueling": ["--critic_loss=retrace", "--q_parameterization=dueling"],
    "path all": _PATH,
    "path root": [*_PATH, "--path_starts=root"],
    "path all, tied": _TIED,
    "path root, tied": [*_TIED, "--path_starts=root"],
}

_SETTINGS = flags.DEFINE_string(
    "settings", ";".join(SETTINGS), "Names of settings, separated by semicolons."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_DATASET = flags.DEFINE_string("dataset", "balance_scale", "Data set.")
_NUM_ENV_STEPS = flags.DEFINE_integer("num_env_steps", 480, "Environment steps of a run.")
_MODEL = flags.DEFINE_string("model", "models/tiny", "Model folder.")
_OUTPUT = flags.DEFINE_string("output", "results/presets", "Folder of the runs and presets.csv.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)


def main() -> int:
    unknown = [name for name in _SETTINGS.value.split(";") if name not in SETTINGS]
    if unknown:
        raise UsageError(f"--settings={unknown[0]}: must be one of {', '.join(SETTINGS)}")
    cells = [(name, int(seed)) for seed in _SEEDS.value for name in _SETTINGS.value.split(";")]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        rows = list(pool.map(lambda cell: _run(*cell), cells))
    output = Path(_OUTPUT.value)
    with open(output / "presets.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["setting", "dataset", "seed", *measured_train.MEASURES])
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    return 0


def _run(setting: str, seed: int) -> dict[str, object]:
    path = (
        Path(_OUTPUT.value)
        / _DATASET.value
        / setting.replace(", ", "_").replace(" ", "_")
        / str(seed)
    )
    arguments = [
        "--flagfile=launch/tiny.flags",
        *(f"--seed={seed}", f"--dataset={_DATASET.value}"),
        f"--model={_MODEL.value}",
        *SETTINGS[setting],
    ]
    measures = measured_train.run(path, arguments, _NUM_ENV_STEPS.value)
    row = {"setting": setting, "dataset": _DATASET.value, "seed": seed, **measures}
    print(f"{setting}, seed {seed}: {row['reward_last_fifth']:.3f}", file=sys.stderr, flush=True)
    return row


def table(rows: list[dict]) -> str:
    """A Markdown table of means over seeds."""
    by_setting = collections.defaultdict(list)
    for row in rows:
        by_setting[row["setting"]].append(row)
    lines = [
        f"| setting | seeds | {' | '.join(measured_train.MEASURES)} |",
        f"|---|---|{'---|' * len(measured_train.MEASURES)}",
    ]
    for setting, group in by_setting.items():
        cells = [
            f"{np.mean([row[column] for row in group]):.3f}" for column in measured_train.MEASURES
        ]
        low, high = (
            bound([row["reward_last_fifth"] for row in group]) for bound in (np.min, np.max)
        )
        cells[1] += f" ({low:.3f} to {high:.3f})"
        lines.append(f"| {setting} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main)
