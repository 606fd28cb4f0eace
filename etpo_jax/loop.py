"""The host loop of Algorithm 1: collect, learn, log, checkpoint; resumable between updates."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from env.base import Step, Task
from etpo_jax.acting.external import BILLED
from etpo_jax.acting.replay import Replay
from etpo_jax.acting.rollout import Actions, Actor, Episodes, Prompts
from etpo_jax.acting.transitions import Batch, Transition, collate
from etpo_jax.algorithms import inspection
from etpo_jax.algorithms.etpo import Metrics, check_finite
from etpo_jax.algorithms.learner import (
    BilledLearner,
    CollectionLearner,
    InspectableLearner,
    Learner,
    MeasuringLearner,
    ReplayLearner,
)
from etpo_jax.config import Config
from etpo_jax.devices import hosts
from etpo_jax.runs.checkpoint import Checkpoints
from etpo_jax.runs.directory import Best, RunDirectory
from etpo_jax.runs.progress import Timer
from models.tokenizer import Tokenizer

RECENT_PROGRAMS = 64
"""Programs among which `distinct_programs` counts."""

_OF_LAST = ("kl_to_reference", "entropy")


@dataclasses.dataclass
class Counters:
    """What the host remembers beside episodes and replay."""

    update: int = 0
    gradient_steps: int = 0
    best: Best | None = None
    recent: collections.deque[str] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=RECENT_PROGRAMS)
    )

    def to_json(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "gradient_steps": self.gradient_steps,
            "best": self.best.to_json() if self.best else None,
            "recent": list(self.recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `to_json` gave."""
        self.update = state["update"]
        self.gradient_steps = state["gradient_steps"]
        self.best = Best.from_json(state["best"]) if state["best"] else None
        self.recent.clear()
        self.recent.extend(state["recent"])


class Loop:
    """One run of an algorithm on a task, from wherever its last checkpoint left it."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        checkpoints: Checkpoints,
        task: Task,
        tokenizer: Tokenizer | None,
        prompts: Prompts,
        actor: Actor,
        learner: Learner,
    ):
        """Nothing is sampled yet.

        Args:
          config: of the run.
          run: where its logs go.
          checkpoints: of the run.
          task: what is acted in.
          tokenizer: of prompts and actions; None where the actor gives text only.
          prompts: how the actor takes states.
          actor: samples actions.
          learner: learns from them, or measures.
        """
        learning = config.learning
        self._config = config
        self._run = run
        self._checkpoints = checkpoints
        self._tokenizer = tokenizer
        self._actor = actor
        self._learner = learner
        self._task = task
        self._counters = Counters()
        self._replay = Replay(
            max(learning.replay_size, learning.num_envs * learning.steps_per_update),
            config.model.max_prompt_length,
            config.sampling.max_new_tokens,
            has_targets=learning.targets == "collection" and isinstance(learner, ReplayLearner),
        )
        self._episodes = Episodes(task, prompts, learning.num_envs, config.run.seed)
        self._key = jax.random.key(config.run.seed)
        self._reference_weights = (
            actor.weights({}) if config.sampling.support_threshold > 0 else None
        )

    @property
    def counters(self) -> Counters:
        return self._counters

    @property
    def env_step(self) -> int:
        """Environment steps done."""
        return self._episodes.env_step

    def resume(self) -> None:
        """Restores the last committed checkpoint, if any, and cuts the logs back to it."""
        update = self._checkpoints.latest
        if update is None:
            self._run.cut_back(update=-1, env_step=-1, best=None)
            return
        state, replay, host = self._checkpoints.restore(
            update, self._learner.state, self._replay.state()
        )
        self._learner.state = state
        self._replay.restore(replay)
        self._episodes.restore(host["episodes"])
        self._counters.restore(host["counters"])
        self._run.cut_back(update=update, env_step=self.env_step, best=self._counters.best)

    def run(
        self,
        is_stopped: Callable[[], bool],
        on_update: Callable[[dict[str, Any]], None],
    ) -> None:
        """Updates until all environment steps are done or `is_stopped` says so.

        Args:
          is_stopped: asked between updates; of several hosts any may say so.
          on_update: called with each row of `metrics.jsonl`.
        """
        saved = self._counters.update
        while self.env_step < self._config.run.num_env_steps and not hosts.any_of(is_stopped()):
            row, episode_rows = self._update()
            self._run.append_episodes(episode_rows)
            self._run.append_metrics(row)
            on_update(row)
            if self._counters.update - saved >= self._config.run.checkpoint_every:
                self._save()
                saved = self._counters.update
        if saved < self._counters.update:
            self._save()
        self._checkpoints.wait()

    def inspect(self, count: int) -> list[dict[str, Any]]:
        """The newest actions token by token, for the report; empty where the learner cannot say."""
        newest = self._replay.newest(count)
        learner = self._learner
        if not newest or self._tokenizer is None or not isinstance(learner, InspectableLearner):
            return []
        found = hosts.fetch(learner.inspect(self._collate(newest)))
        return inspection.to_rows(newest, found, self._tokenizer)

    def close(self) -> None:
        """Ends the background execution."""
        self._episodes.close()

    def _save(self) -> None:
        self._checkpoints.save(
            self._counters.update,
            self._learner.state,
            self._replay.state(),
            {"episodes": self._episodes.state(), "counters": self._counters.to_json()},
        )

    def _update(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One collection and the gradient steps after it."""
        update, learning = self._counters.update + 1, self._config.learning
        learned: list[Metrics] = []
        timer = Timer("generate_s", "execute_s", "update_s")
        new: list[Transition] = []
        rows: list[dict[str, Any]] = []
        num_tokens = 0
        weights = self._actor.weights(self._learner.policy_trunk())
        for t in range(learning.steps_per_update):
            remaining = self._config.run.num_env_steps - self.env_step
            if not remaining:
                break
            with timer.measure("generate_s"):
                actions = self._act(weights, jax.random.fold_in(self._key, update), t)
            if t + 1 == learning.steps_per_update:
                weights = None  # a copy of the model, whose memory a gradient step can use
            num_tokens += actions.num_tokens
            started = time.monotonic()
            executing = self._episodes.start(actions.texts[:remaining])
            if t == 0 and learning.learn_while_executing:
                # The device learns from what is already there.
                with timer.measure("update_s"):
                    learned += self._learn_from_replay(update)
            steps = self._episodes.collect(executing)
            timer.add("execute_s", time.monotonic() - started)
            step_transitions, step_rows = self._episodes.finish(actions, steps)
            self._note_best(actions, steps)
            new += step_transitions
            rows += step_rows
        if update == 1:
            self._learner.start(float(np.mean([transition.reward for transition in new])))
        if learning.targets == "collection":
            with timer.measure("update_s"):
                new = self._with_targets(new)
        self._replay.add(new)
        with timer.measure("update_s"):
            if not learning.learn_while_executing:
                learned += self._learn_from_replay(update)
            learned += self._learn_from_new(new, update)
            metrics = self._fetch(learned)
        if isinstance(self._learner, BilledLearner):
            metrics |= self._learner.usage()
        self._counters.update = update
        self._counters.recent.extend(row["action"] for row in rows)
        # Of the machine and of what its disk remembers; all else is the same for the same seed.
        of_the_machine = {
            "reward_cache_hit_rate": float(np.mean([row["cached"] for row in rows])),
            "tokens_per_s": num_tokens / timer.seconds["generate_s"],
            **timer.seconds,
        }
        return self._row(rows, metrics) | of_the_machine, rows

    def _act(self, weights: Any, key: jax.Array, t: int) -> Actions:
        return self._actor.act(
            weights,
            self._episodes.encode(),
            jax.random.fold_in(key, t),
            reference_weights=self._reference_weights,
        )

    def _learn_from_replay(self, update: int) -> list[Metrics]:
        """All gradient steps but the last, which takes the new transitions."""
        if not isinstance(self._learner, ReplayLearner) or not len(self._replay):
            return []
        size = self._config.learning.minibatch_size
        return [
            self._learner.learn(self._collate(self._replay.sample(size, self._rng(update, index))))
            for index in range(self._learner.num_updates - 1)
        ]

    def _learn_from_new(self, new: list[Transition], update: int) -> list[Metrics]:
        """The gradient steps that take new transitions, or else what the policy is like."""
        if isinstance(self._learner, CollectionLearner):
            return self._learner.learn_collection(self._whole(new), self._rng(update, 0))
        if not isinstance(self._learner, MeasuringLearner):
            return []
        fresh = self._collate(self._fresh(new, update))
        if isinstance(self._learner, ReplayLearner):
            return [self._learner.learn(fresh)]
        return [self._learner.measure(fresh)]

    def _with_targets(self, new: list[Transition]) -> list[Transition]:
        """A collection with its targets, of learners that keep them for later steps."""
        if not isinstance(self._learner, ReplayLearner):
            return new
        targets_bj = hosts.fetch(self._learner.targets(self._whole(new)))
        return [
            dataclasses.replace(transition, targets=targets_j[: len(transition.action_tokens)])
            for transition, targets_j in zip(new, targets_bj, strict=False)
        ]

    def _whole(self, new: list[Transition]) -> Batch:
        """A collection as one batch; a smaller last one is filled up with itself: one shape."""
        size = self._config.learning.num_envs * self._config.learning.steps_per_update
        return self._collate([new[index % len(new)] for index in range(size)])

    def _fresh(self, new: list[Transition], update: int) -> list[Transition]:
        """A minibatch of new transitions, filled up from the replay if they are too few."""
        size = self._config.learning.minibatch_size
        rng = self._rng(update, self._config.learning.updates_per_batch)
        if len(new) > size:
            chosen = rng.choice(len(new), size=size, replace=False)
            return [new[index] for index in chosen]
        return new + (self._replay.sample(size - len(new), rng) if len(new) < size else [])

    def _rng(self, update: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self._config.run.seed, update, index])

    def _collate(self, transitions: list[Transition]) -> Batch:
        assert self._tokenizer is not None  # who learns or measures has tokens
        return collate(
            transitions,
            pad_id=self._tokenizer.pad_id,
            length_multiple=self._config.model.length_multiple,
            max_prompt_length=self._config.model.max_prompt_length,
            max_new_tokens=self._config.sampling.max_new_tokens,
        )

    def _fetch(self, learned: list[Metrics]) -> dict[str, float]:
        """Mean over the gradient steps; KL and entropy are those of the new transitions."""
        if not learned:
            return {}
        fetched = hosts.fetch(learned)
        for metrics in fetched:
            if "is_finite" in metrics:
                self._counters.gradient_steps += 1
                check_finite(metrics, self._counters.gradient_steps)
        means = {
            name: float(np.mean([metrics[name] for metrics in fetched])) for name in fetched[-1]
        }
        means.pop("is_finite", None)
        return means | {name: float(fetched[-1][name]) for name in _OF_LAST if name in means}

    def _note_best(self, actions: Actions, steps: list[Step]) -> None:
        first = self.env_step - len(steps) + 1
        for index, step in enumerate(steps):
            best = self._counters.best
            if step.error or (best is not None and step.reward <= best.reward):
                continue
            self._counters.best = Best(
                reward=step.reward,
                split_scores=tuple(step.info.get("split_scores", ())),
                env_step=first + index,
                dataset=self._task.name,
                seed=self._config.run.seed,
                action=actions.texts[index],
                program=self._task.program(actions.texts[index]),
            )
            self._run.write_best(self._counters.best)

    def _row(self, rows: list[dict[str, Any]], metrics: dict[str, float]) -> dict[str, Any]:
        rewards = [row["reward"] for row in rows]
        best = self._counters.best
        learned = {
            name: metrics.get(name)
            for name in (
                "kl_to_reference",
                "entropy",
                "critic_loss",
                "policy_loss",
                "target_mean",
                "critic_grad_norm",
                "policy_grad_norm",
                "clipped_share",
            )
        }
        return {
            "env_step": self.env_step,
            "update": self._counters.update,
            "gradient_steps": self._counters.gradient_steps,
            "reward_mean": float(np.mean(rewards)),
            "reward_best": best.reward if best else None,
            "runnable_rate": float(np.mean([not row["error"] for row in rows])),
            "distinct_programs": len(set(self._counters.recent)),
            **learned,
            **{name: metrics[name] for name in BILLED if name in metrics},
        }
