"""How the result of training depends on each setting, one at a time.

  python -m benchmarks.sensitivity --datasets=balance_scale,tic_tac_toe --seeds=0,1,2 --jobs=2

Every run has a directory of its own under --runs, so that an interrupted study goes on where it
stopped; the preset itself is run once and counts for every setting. Writes sensitivity.csv and
sensitivity.svg into --output.
"""

import csv
import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import measured_train
from env import command_line
from env.flagfiles import expand_flagfiles
from etpo_jax.config import Config

VALUES: dict[str, tuple[float, ...]] = {
    "beta": (0.025, 0.05, 0.06, 0.1, 0.2),
    "trust_region": (0.0, 0.1, 0.3, 1.0),
    "policy_learning_rate": (2.5e-4, 5e-4, 1e-3, 2e-3),
    "updates_per_batch": (2, 4, 6, 8),
    "lambda_within": (0.0, 0.9, 1.0),
    "temperature": (0.7, 1.0, 1.3),
}
"""Values of each setting; all others stay as --preset has them."""
_SHOWN = (
    ("reward_last_fifth", "mean reward, last fifth"),
    ("kl_to_reference", "KL to the reference, nats"),
    ("distinct_programs", "distinct programs of 64"),
)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A0508A")

_DATASETS = flags.DEFINE_list("datasets", ["balance_scale", "tic_tac_toe"], "Data sets.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_SETTINGS = flags.DEFINE_list("settings", list(VALUES), "Which settings are varied.")
_NUM_ENV_STEPS = flags.DEFINE_integer("num_env_steps", 480, "Environment steps of a run.")
_PRESET = flags.DEFINE_string("preset", "launch/tiny.flags", "Flagfile that is varied.")
_SETUP = flags.DEFINE_string("setup", None, "Flagfile read after it: padding, checkpoints.")
_RUNS = flags.DEFINE_string("runs", "results/sensitivity", "Folder of the runs.")
_OUTPUT = flags.DEFINE_string("output", "results/sensitivity", "Folder of table and picture.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)


def main() -> int:
    cells = [
        (setting, value, dataset, int(seed))
        for seed in _SEEDS.value
        for dataset in _DATASETS.value
        for setting in _SETTINGS.value
        for value in VALUES[setting]
    ]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        # Cells with the preset's own value are one and the same run.
        runs = {_folder(*cell): cell for cell in cells}
        measures = dict(zip(runs, pool.map(_run, runs, runs.values()), strict=True))
    rows: list[dict[str, object]] = [
        {"setting": setting, "value": value, "dataset": dataset, "seed": seed}
        | measures[_folder(setting, value, dataset, seed)]
        for setting, value, dataset, seed in cells
    ]
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "sensitivity.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "etpo_jax"}):
        picture(rows).savefig(output / "sensitivity.svg", metadata={"Date": None})
    print(output / "sensitivity.svg")
    return 0


def _folder(setting: str, value: float, dataset: str, seed: int) -> Path:
    name = "preset" if value == _preset_value(setting) else f"{setting}={value:g}"
    return Path(_RUNS.value) / dataset / name / str(seed)


@functools.cache
def _preset_value(setting: str) -> float:
    """Value of a setting in the varied flagfile and those that it names, else its default."""
    said = expand_flagfiles([f"--flagfile={_PRESET.value}"])
    values = [line.split("=", 1)[1] for line in said if line.startswith(f"--{setting}=")]
    return float(values[-1] if values else Config().to_dict()[setting])


def _run(path: Path, cell: tuple[str, float, str, int]) -> dict[str, float]:
    setting, value, dataset, seed = cell
    arguments = [f"--flagfile={_PRESET.value}"]
    if _SETUP.value:
        arguments.append(f"--flagfile={_SETUP.value}")
    arguments += [f"--seed={seed}", f"--dataset={dataset}", f"--{setting}={value:g}"]
    arguments.append("--num_workers=1")
    measures = measured_train.run(path, arguments, _NUM_ENV_STEPS.value)
    reward = measures["reward_last_fifth"]
    print(f"{path.relative_to(_RUNS.value)}: {reward:.3f}", file=sys.stderr, flush=True)
    return {name: round(number, 4) for name, number in measures.items() if name != "wall_s"}


def picture(rows: list[dict]) -> Figure:
    """A column per setting, a row per measure: mean over seeds, every seed as a dot."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    figure = Figure(figsize=(3.2 * len(settings), 2.6 * len(_SHOWN)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_SHOWN), len(settings), squeeze=False, sharey="row")
    for column, setting in enumerate(settings):
        values = sorted({row["value"] for row in rows if row["setting"] == setting})
        for axes, (measure, label) in zip(panels[:, column], _SHOWN, strict=True):
            for colour, dataset in zip(_COLOURS, datasets, strict=False):
                means = []
                for place, value in enumerate(values):
                    key = (setting, value, dataset)
                    found = [
                        float(row[measure])
                        for row in rows
                        if (row["setting"], row["value"], row["dataset"]) == key
                    ]
                    means.append(np.mean(found))
                    axes.plot([place] * len(found), found, ".", color=colour, alpha=0.5, ms=5)
                axes.plot(range(len(values)), means, "-o", color=colour, ms=4, label=dataset)
            axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axes.grid(color="0.9", lw=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label)
        panels[-1, column].set_xlabel(f"--{setting}")
    panels[0, 0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    command_line.run(main)
