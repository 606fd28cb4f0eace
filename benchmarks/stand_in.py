"""What a stand-in can do before any reinforcement learning: `python -m benchmarks.stand_in`.

Samples the first prompt of each table, executes every different program, shows each failure with
its error and samples an answer. `--write_card` puts the figures into the model's card.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import sklearn
from absl import flags

import models
from env import command_line
from env.base import Step
from env.datasets import load_dataset
from env.executor import CodeExecutor
from env.tasks.code_task import CodeTask
from etpo_jax.acting.sampler import Sampler
from etpo_jax.config import SamplingConfig
from models.decode import Weights, unstack
from models.errors import ModelError
from models.stand_in import card
from models.tokenizer import Tokenizer

_GOOD = 0.93
_GROUP = 64

_MODEL = flags.DEFINE_string("model", "models/tiny", "Model folder.")
_DATASETS = flags.DEFINE_list("dataset", ["balance_scale", "tic_tac_toe"], "Tables, by name.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with the tables that are not made here.")
_SAMPLES = flags.DEFINE_integer("samples", 1024, "First answers for each table.", lower_bound=64)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of sampling.", lower_bound=1e-3)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Programs executed at the same time.", lower_bound=1)
_ISOLATION = flags.DEFINE_string("isolation", "auto", "Of the executed programs.")
_WRITE_CARD = flags.DEFINE_bool("write_card", False, "Write figures and card into the folder.")


@dataclasses.dataclass(frozen=True)
class Coder:
    """A model that answers prompts."""

    tokenizer: Tokenizer
    sampler: Sampler
    weights: Weights

    def answers(self, prompts: Sequence[str], seed: int) -> tuple[list[str], np.ndarray]:
        """One body for each prompt, and its tokens, the stop token included."""
        bodies: list[str] = []
        lengths: list[int] = []
        keys = jax.random.split(jax.random.key(seed), len(prompts))
        ids = [self.tokenizer.encode_infill(prompt) for prompt in prompts]
        width = -(-max(map(len, ids)) // 64) * 64
        for start in range(0, len(prompts), _GROUP):
            rows = ids[start : start + _GROUP]
            tokens_bp = np.full((_GROUP, width), self.tokenizer.pad_id, np.int32)
            mask_bp = np.zeros((_GROUP, width), bool)
            # Rows that are missing in the last group repeat its first one and are dropped.
            for row in range(_GROUP):
                prompt = rows[row] if row < len(rows) else rows[0]
                tokens_bp[row, width - len(prompt) :] = prompt
                mask_bp[row, width - len(prompt) :] = True
            keys_b = keys[np.minimum(start + np.arange(_GROUP), len(prompts) - 1)]
            generation = self.sampler.generate(self.weights, tokens_bp, mask_bp, keys_b)
            tokens_bj = np.asarray(generation.action_tokens_bj)[: len(rows)]
            lengths_b = np.asarray(generation.action_mask_bj)[: len(rows)].sum(axis=1)
            bodies += [
                self.tokenizer.decode(tokens[:length].tolist())
                for tokens, length in zip(tokens_bj, lengths_b, strict=True)
            ]
            lengths += lengths_b.tolist()
        return bodies, np.array(lengths)


def measure(coder: Coder, task: CodeTask, *, samples: int, seed: int) -> dict[str, float]:
    """The figures of one table."""
    rng = np.random.default_rng(seed)
    start = task.reset(rng)
    bodies, lengths = coder.answers([task.render(start)] * samples, seed)
    different = list(dict.fromkeys(bodies))
    outcome: dict[str, Step] = dict(
        zip(different, task.step([start] * len(different), different, []), strict=True)
    )
    steps = [outcome[body] for body in bodies]
    rewards = np.array([step.reward for step in steps])
    runs = np.array([not step.error for step in steps])
    retries = [step.next_state for step in steps if step.next_state is not None]
    mended = float("nan")
    if retries:
        answers, _ = coder.answers([task.render(state) for state in retries], seed + 1)
        mended = float(np.mean([not step.error for step in task.step(retries, answers, [])]))
    groups = [bodies[i : i + _GROUP] for i in range(0, samples - _GROUP + 1, _GROUP)]
    return {
        "runnable": float(runs.mean()),
        "reward_mean": float(rewards.mean()),
        "auc_mean": float(rewards[runs].mean()),
        "reward_p90": float(np.quantile(rewards, 0.9)),
        "reward_best": float(rewards.max()),
        "share_above_093": float((rewards > _GOOD).mean()),
        "distinct_of_64": float(np.mean([len(set(group)) for group in groups])),
        "action_tokens": float(lengths.mean()),
        "fixed": mended,
    }


def main() -> None:
    model, params = models.load(_MODEL.value)
    tokenizer = Tokenizer(_MODEL.value)
    sampling = SamplingConfig(temperature=_TEMPERATURE.value)
    sampler = Sampler(model.config, tokenizer.eos_ids, tokenizer.pad_id, sampling)
    coder = Coder(tokenizer, sampler, unstack(params, model.config))
    tables = {}
    for name in _DATASETS.value:
        dataset = load_dataset(name, data_dir=_DATA_DIR.value)
        with CodeExecutor(
            dataset,
            num_workers=_WORKERS.value,
            timeout_s=60.0,
            memory_bytes=1 << 30,
            isolation=_ISOLATION.value,
        ) as executor:
            task = CodeTask(dataset, executor)
            tables[name] = measure(coder, task, samples=_SAMPLES.value, seed=_SEED.value)
        values = ", ".join(f"{key} {value:.4g}" for key, value in tables[name].items())
        print(f"{name}: {values}", flush=True)
    if _WRITE_CARD.value:
        weights = pathlib.Path(_MODEL.value) / "model.safetensors"
        figures = {
            "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "temperature": _TEMPERATURE.value,
            "samples": _SAMPLES.value,
            "scikit_learn": sklearn.__version__,
            "tables": tables,
        }
        folder = pathlib.Path(_MODEL.value)
        (folder / card.FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
        card.write(folder)


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
