"""Figures of a stand-in before any reinforcement learning: `python -m benchmarks.stand_in`.

Runs the untrained model (`--algorithm=reflection`) on each table, with episodes of two steps: an
answer to the first prompt and, where its program fails, an answer to the prompt with the error.
`--write_card` puts the figures into the model's card.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.runs import directory, files
from models.errors import ModelError
from models.stand_in import card
from models.tokenizer import Tokenizer

_GOOD = 0.93
_GROUP = 64

_MODEL = flags.DEFINE_string("model", "models/tiny", "Model folder.")
_DATASETS = flags.DEFINE_list("dataset", ["balance_scale", "tic_tac_toe"], "Tables, by name.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with raw tables, see docs/tasks.md.")
_SAMPLES = flags.DEFINE_integer("samples", 1024, "First answers for each table.", lower_bound=64)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Sampling temperature.", lower_bound=1e-3)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling.", lower_bound=0)
_ISOLATION = flags.DEFINE_string("isolation", "auto", "Isolation tier of the executed programs.")
_WRITE_CARD = flags.DEFINE_bool("write_card", False, "Write figures and card into the folder.")


def main() -> None:
    tokenizer = Tokenizer(_MODEL.value)
    tables = {}
    for name in _DATASETS.value:
        tables[name] = measure(_episodes(name), tokenizer, samples=_SAMPLES.value)
        values = ", ".join(f"{key} {value:.4g}" for key, value in tables[name].items())
        print(f"{name}: {values}", flush=True)
    if _WRITE_CARD.value:
        folder = pathlib.Path(_MODEL.value)
        figures = {
            "model_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "temperature": _TEMPERATURE.value,
            "samples": _SAMPLES.value,
            "scikit_learn": sklearn.__version__,
            "tables": tables,
        }
        (folder / card.FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
        card.write(folder)


def _episodes(dataset: str) -> list[dict[str, Any]]:
    """Rows of `episodes.jsonl` with at least --samples first answers: every other row is one."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = [
            *(sys.executable, "-m", "etpo_jax.train", "--algorithm=reflection", "--max_steps=2"),
            *(f"--model={_MODEL.value}", f"--dataset={dataset}", f"--isolation={_ISOLATION.value}"),
            *(f"--temperature={_TEMPERATURE.value}", f"--seed={_SEED.value}"),
            *(f"--num_envs={_GROUP}", f"--num_env_steps={2 * _SAMPLES.value + _GROUP}"),
            *(f"--run_dir={run_dir}", "--support_threshold=0", "--limits=timeout_s=60"),
            *([f"--data_dir={_DATA_DIR.value}"] if _DATA_DIR.value else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            raise UsageError(f"--dataset={dataset}: exit code {done.returncode}, {last[0]}")
        return list(files.read_rows(pathlib.Path(run_dir) / directory.EPISODES))


def measure(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, *, samples: int
) -> dict[str, float]:
    """Figures of one table from its episodes, as `models.stand_in.card` shows them."""
    first = [row for row in rows if row["t"] == 0][:samples]
    second = [row for row in rows if row["t"] == 1]
    rewards = np.array([row["reward"] for row in first])
    runs = np.array([not row["error"] for row in first])
    bodies = [row["action"] for row in first]
    groups = [bodies[i : i + _GROUP] for i in range(0, len(bodies) - _GROUP + 1, _GROUP)]
    return {
        "runnable": float(runs.mean()),
        "reward_mean": float(rewards.mean()),
        "auc_mean": float(rewards[runs].mean()) if runs.any() else float("nan"),
        "reward_p90": float(np.quantile(rewards, 0.9)),
        "reward_best": float(rewards.max()),
        "share_above_093": float((rewards > _GOOD).mean()),
        "distinct_of_64": float(np.mean([len(set(group)) for group in groups])),
        # The begin-of-text token is counted in place of the stop token that ends an action.
        "action_tokens": float(np.mean([len(tokenizer.encode(body)) for body in bodies])),
        "fixed": float(np.mean([not row["error"] for row in second])) if second else float("nan"),
    }


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
