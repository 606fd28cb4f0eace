"""What the soft optimum would cost: reward and KL of rho(a) exp(r(a) / beta) / Z, without training.

  python -m benchmarks.soft_optimum --runs=results/methods/runs/reflection

Programs that the reference wrote, as runs of `--algorithm=reflection` keep them, are weighted with
exp(r / beta), so that nothing is learnt and nothing can be learnt wrongly. Each action counts for
itself: all prompts of a table are taken as one, and what a next step is worth is left out. N
programs show at most log N nats; where few of them carry the weight (last column) the figures are
rough.
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.runs import directory, files

_RUNS = flags.DEFINE_string(
    "runs", "results/methods/runs/reflection", "Folder with run directories of reflection."
)
_BETAS = flags.DEFINE_list("betas", ["0.2", "0.1", "0.07", "0.05"], "Rewards per nat.")


class Tilted(NamedTuple):
    """The reference's programs, weighted.

    Attributes:
      reward: their mean reward.
      kl: KL to the reference, nats per action.
      effective: Kish's effective number of programs, 1 / sum of squared weights.
    """

    reward: float
    kl: float
    effective: float


def main() -> int:
    rewards: dict[str, list[float]] = collections.defaultdict(list)
    for path in sorted(Path(_RUNS.value).glob(f"**/{directory.EPISODES}")):
        for row in files.read_rows(path):
            rewards[row["dataset"]].append(row["reward"])
    if not rewards:
        raise UsageError(f"--runs={_RUNS.value}: no {directory.EPISODES} below it")
    print("| data set | programs | mean reward | beta | reward | KL, nats | effective programs |")
    print("|---|---|---|---|---|---|---|")
    for name, values in rewards.items():
        for beta in map(float, _BETAS.value):
            reward, kl, effective = tilted(values, beta)
            print(
                f"| {name} | {len(values)} | {np.mean(values):.3f} | {beta:g} | {reward:.3f} | "
                f"{kl:.2f} | {effective:.0f} |"
            )
    return 0


def tilted(rewards: Sequence[float], beta: float) -> Tilted:
    """Self-normalised importance sampling from the reference.

    Args:
      rewards: of programs that the reference sampled.
      beta: reward per nat.
    """
    reward_n = np.asarray(rewards, np.float64)
    weight_n = np.exp((reward_n - reward_n.max()) / beta)
    weight_n /= weight_n.sum()
    seen_n = weight_n > 0
    kl = float(np.sum(weight_n[seen_n] * np.log(weight_n[seen_n] * len(reward_n))))
    return Tilted(float(weight_n @ reward_n), kl, float(1 / np.sum(np.square(weight_n))))


if __name__ == "__main__":
    command_line.run(main)
