"""Measures the final policy of a run on actions that it samples anew.

Training logs the KL of every collection, of a policy that is still moving and on programs that it
then learns from. Methods are compared by what the last policy does with fresh samples: its reward,
its KL to the reference, and whether it only repeats programs of the run.
"""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from env.base import State, Task
from etpo_jax import build
from etpo_jax.acting.episodes import checked_step, transition_of
from etpo_jax.acting.rollout import SamplingActor, TokenPrompts
from etpo_jax.acting.transitions import Batch, Transition, collate
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.token_scores import make_divergences
from etpo_jax.build import Language
from etpo_jax.config import LENGTH_MULTIPLE, Config
from etpo_jax.devices import hosts
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.roles import Role
from etpo_jax.runs import directory, files, fingerprint
from etpo_jax.runs.checkpoint import read_role
from etpo_jax.runs.steps import choose, read_newest

NUM_SAMPLES = 128
_STREAM = 0x46494E41
"""Separates the random keys of this module from those of training, whatever the seeds are."""


class Sample(NamedTuple):
    """One executed action of an episode that was played for a measurement.

    Attributes:
      episode: number of the episode.
      t: step within the episode, 0 for the answer to the first prompt.
      action: text of the action.
      is_runnable: whether it was executed without an error.
      transition: tokens and reward.
    """

    episode: int
    t: int
    action: str
    is_runnable: bool
    transition: Transition


def measure(
    run_dir: str | os.PathLike[str], num_samples: int = NUM_SAMPLES, seed: int | None = None
) -> dict[str, Any]:
    """Samples and rewards actions of the policy in a run's newest checkpoint.

    It plays `num_samples` episodes to their ends: so many answers to the first prompt, and answers
    to errors as often as the policy fails. Rewards come through the run's reward cache.

    Args:
      run_dir: the run directory.
      num_samples: number of episodes, at least 2.
      seed: seed of sampling; None is that of the run, so that runs with different seeds do not
        share their sampling errors. Whatever it is, the samples are not those of training.

    Returns:
      The dict of `summarize`.

    Raises:
      UsageError: the run has no checkpoint, its settings or its model cannot be used, or its model
        is behind an endpoint.
    """
    run_path = Path(run_dir).expanduser()
    config = build.settings_of(directory.open_for_reading(run_path))
    fingerprint.check(run_path, config.model.model)
    build.use_compilation_cache()
    mesh = build_mesh(config.model.mesh)
    with jax.set_mesh(mesh), build.open_task(config) as task:
        folder, keys = run_path / directory.CHECKPOINTS, config.algorithm.policy_keys(config)
        trunk: Role = {}
        if keys:
            _, trunk = read_newest(folder, None, lambda path: read_role(path, keys, mesh))
        else:
            choose(folder, None)
        language = build.load_language(config, mesh)
        prompts = build.make_prompts(config, task, language.tokenizer)
        actor = build.make_actor(config, language, mesh, action_end=prompts.action_end)
        samples = play(
            task,
            prompts,
            actor,
            trunk,
            num_episodes=num_samples,
            rows=config.run.num_envs,
            needs_reference=config.samples_with_reference,
            seed=config.run.seed if seed is None else seed,
        )
        kl, full_kl = divergences(
            config, language, trunk, [sample.transition for sample in samples]
        )
    return summarize(samples, kl, full_kl, executed_actions(run_path))


def executed_actions(run_path: Path) -> set[str]:
    """Texts of all actions that a run has executed."""
    path = run_path / directory.EPISODES
    return {row["action"] for row in files.read_rows(path)} if path.exists() else set()


def play(
    task: Task,
    prompts: TokenPrompts,
    actor: SamplingActor,
    trunk: Role,
    *,
    num_episodes: int,
    rows: int,
    needs_reference: bool,
    seed: int,
) -> list[Sample]:
    """Plays episodes to their ends.

    Args:
      task, prompts, actor: what is played.
      trunk: variables of the policy.
      num_episodes: number of episodes.
      rows: actions that are sampled at a time, which bounds memory; as many as in training need no
        new compilation.
      needs_reference: whether sampling reads the reference, for a support mask.
      seed: seed of episodes and sampling.
    """
    weights = actor.weights(trunk)
    reference_weights = actor.weights({}) if needs_reference else None
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)

    def rng(episode: int, t: int) -> np.random.Generator:
        return np.random.default_rng([seed, _STREAM, episode, t])

    going = [(episode, task.reset(rng(episode, 0))) for episode in range(num_episodes)]
    samples: list[Sample] = []
    chunks = itertools.count()
    while going:
        following: list[tuple[int, State]] = []
        for start in range(0, len(going), rows):
            part = going[start : start + rows]
            encoded = [prompts.encode(state) for _, state in part]
            # The number of rows stays the same, so that one program samples all of them.
            filled = [encoded[index % len(part)] for index in range(rows)]
            actions = actor.act(
                weights,
                filled,
                jax.random.fold_in(key, next(chunks)),
                reference_weights=reference_weights,
            )
            steps = checked_step(
                task,
                [state for _, state in part],
                actions.texts[: len(part)],
                [rng(episode, state.t + 1) for episode, state in part],
            )
            for index, ((episode, state), step) in enumerate(zip(part, steps, strict=True)):
                if step.next_state is not None:
                    following.append((episode, step.next_state))
                transition = transition_of(actions, index, step, prompts)
                samples.append(
                    Sample(episode, state.t, actions.texts[index], not step.error, transition)
                )
        going = following
    return samples


def divergences(
    config: Config, language: Language, trunk: Role, transitions: Sequence[Transition]
) -> tuple[np.ndarray, np.ndarray]:
    """KL of each action's policy to the reference and to the full reference, float64 [n] in nats.

    Both are `token_scores.Divergences`: exact at each position and summed along the sampled action.
    Temperature and support are those of the run's losses.
    """
    measured = make_divergences(config.algorithm.make_networks(language.model, config))
    hyper = Hyperparameters.of(config)
    rows = config.run.num_envs
    found = []
    for start in range(0, len(transitions), rows):
        part = transitions[start : start + rows]
        batch = _collate(config, language, [part[index % len(part)] for index in range(rows)])
        values = hosts.fetch(measured(language.base, trunk, batch, hyper))
        found.append(np.stack([values.kl_b, values.full_kl_b])[:, : len(part)])
    kl, full_kl = np.concatenate(found, axis=1).astype(np.float64)
    return kl, full_kl


def _collate(config: Config, language: Language, transitions: Sequence[Transition]) -> Batch:
    return collate(
        transitions,
        pad_id=language.tokenizer.pad_id,
        length_multiple=LENGTH_MULTIPLE,
        max_prompt_length=config.model.max_prompt_length,
        max_new_tokens=config.sampling.max_new_tokens,
    )


def summarize(
    samples: Sequence[Sample], kl: np.ndarray, full_kl: np.ndarray, executed: Collection[str]
) -> dict[str, Any]:
    """Statistics of fresh samples.

    Args:
      samples: actions of whole episodes.
      kl, full_kl: results of `divergences` for the same actions.
      executed: texts of the actions that were executed in training.

    Returns:
      By name: `reward`, `kl` and `kl_full` (to the reference without the support mask) per action
      with their standard errors (`reward_se` and so on), the shares of actions that run
      (`runnable`) and that were executed in training before (`repeated`; the others are new), the
      numbers of `distinct` actions and of all actions (`num_samples`). They describe all actions
      of the episodes; the same names after `first_` describe the answers to the first prompt, one
      per episode, whose number does not depend on the policy. Means are total over number of
      actions; their standard errors treat episodes as independent and the actions of one episode
      as not.
    """
    first = np.array([sample.t == 0 for sample in samples])
    columns = {
        "reward": np.array([sample.transition.reward for sample in samples]),
        "kl": kl,
        "kl_full": full_kl,
    }
    runnable = np.array([sample.is_runnable for sample in samples])
    repeated = np.array([sample.action in executed for sample in samples])
    episodes = np.array([sample.episode for sample in samples])

    def part(prefix: str, chosen: np.ndarray) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, column in columns.items():
            mean, error = ratio_mean(column[chosen], episodes[chosen])
            found |= {f"{prefix}{name}": mean, f"{prefix}{name}_se": error}
        texts = {
            sample.action for sample, is_chosen in zip(samples, chosen, strict=True) if is_chosen
        }
        return found | {
            f"{prefix}runnable": float(runnable[chosen].mean()),
            f"{prefix}repeated": float(repeated[chosen].mean()),
            f"{prefix}distinct": len(texts),
            f"{prefix}num_samples": int(chosen.sum()),
        }

    return part("", np.ones(len(samples), bool)) | part("first_", first)


def render(measured: Mapping[str, Any]) -> str:
    """The result of `summarize` as a table for the screen."""
    lines = [f"{'':45}{'all':>16}{'first answers':>16}"]
    for label, name in (
        ("mean reward", "reward"),
        ("KL to the reference, nats per action", "kl"),
        ("KL to the reference without support mask", "kl_full"),
    ):
        values = [
            f"{measured[prefix + name]:.3f} ± {measured[prefix + name + '_se']:.3f}"
            for prefix in ("", "first_")
        ]
        lines.append(f"{label:45}" + "".join(f"{value:>16}" for value in values))
    for label, name, style in (
        ("programs executed in training before", "repeated", ".0%"),
        ("distinct programs", "distinct", "d"),
        ("programs", "num_samples", "d"),
    ):
        values = [format(measured[prefix + name], style) for prefix in ("", "first_")]
        lines.append(f"{label:45}" + "".join(f"{value:>16}" for value in values))
    return "\n".join(lines)


def ratio_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Mean of values that come in independent clusters, and its standard error.

    The mean is a ratio of two sums over clusters, values and their number; the standard error is
    that of its linearisation. With one value in each cluster it is deviation / sqrt(n).

    Args:
      values: [n].
      clusters: [n], the cluster of each value; the standard error is NaN for a single one.
    """
    _, index = np.unique(clusters, return_inverse=True)
    count = int(index.max()) + 1
    mean = float(values.mean())
    residuals = np.bincount(index, weights=values - mean, minlength=count)
    if count < 2:
        return mean, float("nan")
    error = np.sqrt(np.sum(residuals**2) * count / (count - 1)) / len(values)
    return mean, float(error)
