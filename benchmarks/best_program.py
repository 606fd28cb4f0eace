"""The best programs of runs with --explore beside those of the untrained model.

    python -m benchmarks.best_program --runs=RUN_DIR,RUN_DIR

Each run gives a row of runs.csv in --output: its best reward, its mean reward without the
environments that explore, and the reward and KL of its final policy on fresh samples. The page
table.md holds them beside the best of as many programs of the untrained model, whose rewards are in
docs/studies/comparison/reference_rewards.csv. Without run directories the page is made again from
runs.csv.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.config import Config
from etpo_jax.reproduction import best_of_budget, final_policy
from etpo_jax.runs import directory, files

_flags = flags.FlagValues()
_RUNS = flags.DEFINE_list("runs", [], "Run directories to add.", flag_values=_flags)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/studies/best_program", "Folder of the results.", flag_values=_flags
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    "docs/studies/comparison/reference_rewards.csv",
    "Rewards of programs of the untrained model, one column for each table.",
    flag_values=_flags,
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 128, "Episodes of a final policy.", lower_bound=2, flag_values=_flags
)


_NOT_OF_METHOD = (
    "run_dir",
    "dataset",
    "data_dir",
    "seed",
    "num_env_steps",
    "executor",
    "checkpoint_every",
)


def measure(path: Path, num_samples: int) -> dict[str, Any]:
    """The row of one run.

    Raises:
      UsageError: the folder holds no run, or its policy cannot be read.
    """
    config = directory.open_for_reading(path)
    rows = list(files.read_rows(path / directory.EPISODES))
    fifth = rows[-(len(rows) // 5) :]
    exploiting = [row["reward"] for row in fifth if not row.get("explores")]
    exploring = [row["reward"] for row in rows if row.get("explores")]
    final = final_policy.measure(path, num_samples)
    defaults = Config.defaults(config["algorithm"])
    changed = {
        name: value
        for name, value in config.items()
        if name in defaults and value != defaults[name] and name not in _NOT_OF_METHOD
    }
    return {
        "settings": " ".join(f"--{name}={value}" for name, value in changed.items()),
        "dataset": config["dataset"],
        "seed": config["seed"],
        "commit": files.read_json(path / directory.VERSIONS).get("git_commit"),
        "env_steps": len(rows),
        "reward_best": max(row["reward"] for row in rows),
        "exploiting_reward_fifth_5": float(np.mean(exploiting)),
        "exploring_reward": float(np.mean(exploring)) if exploring else None,
        "distinct_programs": len({row["action"] for row in rows}),
        "final_reward": final["reward"],
        "final_reward_se": final["reward_se"],
        "final_kl": final["kl"],
        "final_kl_se": final["kl_se"],
    }


def render(runs: pd.DataFrame, reference: pd.DataFrame) -> str:
    """The page as Markdown, one line for each run."""
    lines = [
        "| setting | table | seed | best of the run | best of as many programs of the untrained "
        "model | P(better) | reward, last fifth | reward, fresh | KL, fresh | distinct |",
        f"|{'---|' * 10}",
    ]
    settings = list(dict.fromkeys(runs["settings"]))
    expected = []
    for run in runs.to_dict("records"):
        rewards = reference[run["dataset"]].dropna().to_numpy()
        budget = int(run["env_steps"])
        others = best_of_budget.best_of(rewards, budget)
        expected.append(others.value)
        better = best_of_budget.probability_of_better(rewards, budget, run["reward_best"])
        lines.append(
            f"| {settings.index(run['settings']) + 1} | {run['dataset']} | {run['seed']} "
            f"| {run['reward_best']:.4f} | {others.text('.4f')} | {better:.2f} "
            f"| {run['exploiting_reward_fifth_5']:.3f} "
            f"| {run['final_reward']:.3f} ± {run['final_reward_se']:.3f} "
            f"| {run['final_kl']:.1f} ± {run['final_kl_se']:.1f} | {run['distinct_programs']} |"
        )
    lines += ["", *_means(runs.assign(expected=expected), settings)]
    lines += ["", "Settings, beside the defaults of `etpo train`:", ""]
    lines += [f"{number}. `{setting}`" for number, setting in enumerate(settings, 1)]
    return "\n".join(lines) + "\n"


def _means(runs: pd.DataFrame, settings: list[str]) -> list[str]:
    """Means over tables of the means over seeds, for each setting."""
    lines = [
        "| setting | tables | runs | best of the run | best of as many programs of the untrained "
        "model | reward, last fifth | reward, fresh | KL, fresh | distinct |",
        f"|{'---|' * 9}",
    ]
    names = ["reward_best", "expected", "exploiting_reward_fifth_5", "final_reward", "final_kl"]
    for number, setting in enumerate(settings, 1):
        mine = runs[runs["settings"] == setting]
        means = mine.groupby("dataset")[[*names, "distinct_programs"]].mean()
        *cells, distinct = means.mean()
        texts = " | ".join(f"{value:.3f}" for value in cells)
        lines.append(f"| {number} | {len(means)} | {len(mine)} | {texts} | {distinct:.0f} |")
    return lines


def main() -> int:
    """Adds the runs to the rows and writes the page."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "runs.csv"
    kept = pd.read_csv(path) if path.exists() else pd.DataFrame()
    new = pd.DataFrame([measure(Path(name), _NUM_SAMPLES.value) for name in _RUNS.value])
    runs = pd.concat([kept, new], ignore_index=True)
    if runs.empty:
        raise UsageError("--runs is empty, and there is no runs.csv in --output")
    runs = runs.drop_duplicates(["settings", "dataset", "seed"], keep="last")
    runs.to_csv(path, index=False, float_format="%.5g")
    text = render(pd.read_csv(path), pd.read_csv(_REFERENCE.value))
    (output / "table.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
