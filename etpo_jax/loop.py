"""The host loop of Algorithm 1: collect, learn, log, checkpoint; resumable between updates."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from env.base import Step, Task, UsageError
from etpo_jax.acting.episodes import Episodes
from etpo_jax.acting.explorer import Explorer
from etpo_jax.acting.formats import Prompt
from etpo_jax.acting.plugin_failures import PluginFailures
from etpo_jax.acting.replay import Replay
from etpo_jax.acting.rollout import Actions, Actor, Prompts, SamplingActor
from etpo_jax.acting.transitions import Batch, Transition, collate
from etpo_jax.algorithms import inspection
from etpo_jax.algorithms.base import Algorithm, Experience
from etpo_jax.algorithms.gradients import Metrics, check_finite
from etpo_jax.config import LENGTH_MULTIPLE, Config
from etpo_jax.devices import hosts
from etpo_jax.runs import files
from etpo_jax.runs.best import Best
from etpo_jax.runs.checkpoint import Checkpoints, abstract
from etpo_jax.runs.directory import EPISODES, RunDirectory
from etpo_jax.runs.progress import Timer
from etpo_jax.runs.schedule import Schedule
from etpo_jax.runs.top_programs import TopPrograms
from etpo_jax.settings import parse_interval
from models.tokenizer import Tokenizer

RECENT_PROGRAMS = 64
"""Number of the newest programs among which `distinct_programs` counts."""

# Columns of every row of metrics.jsonl, null where the algorithm has no such metric.
_ALWAYS = (
    "kl_to_reference",
    "entropy",
    "critic_loss",
    "policy_loss",
    "target_mean",
    "critic_grad_norm",
    "policy_grad_norm",
    "clipped_share",
)
# Columns that the loop itself fills.
_OF_THE_LOOP = frozenset(
    {"env_step", "update", "gradient_steps", "reward_mean", "reward_best", "runnable_rate"}
)
# Metrics that describe the policy after the last gradient step, not the mean over the steps.
_OF_LAST_STEP = ("kl_to_reference", "entropy")


@dataclasses.dataclass
class Counters:
    """Counts that the host keeps beside episodes and replay."""

    update: int = 0
    gradient_steps: int = 0
    best: Best | None = None
    recent: collections.deque[str] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=RECENT_PROGRAMS)
    )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values, for checkpoints."""
        return {
            "update": self.update,
            "gradient_steps": self.gradient_steps,
            "best": self.best.to_json() if self.best else None,
            "recent": list(self.recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a value of `to_json`."""
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
        algorithm: Algorithm,
    ):
        """Nothing is sampled yet.

        Args:
          config: settings of the run.
          run: where its logs go.
          checkpoints: where its state goes.
          task: what is acted in.
          tokenizer: makes and reads token ids; None where the actor gives text only.
          prompts: encodes states for the actor.
          actor: samples actions.
          algorithm: learns from them, or measures.
        """
        self._config = config
        self._run = run
        self._checkpoints = checkpoints
        self._tokenizer = tokenizer
        self._actor = actor
        self._algorithm = algorithm
        self._task = task
        self._counters = Counters()
        self._top = TopPrograms()
        self._failures = PluginFailures()
        self._replay = Replay(
            algorithm.replay_size(config),
            config.model.max_prompt_length,
            config.sampling.max_new_tokens,
        )
        self._episodes = Episodes(task, prompts, config.run.num_envs, config.run.seed)
        self._key = jax.random.key(config.run.seed)
        self._exploration = config.run.exploration
        explores_reference = self._exploration.source == "reference" and self._exploration.share
        needs_reference = config.samples_with_reference or explores_reference
        self._reference_weights = actor.weights({}) if needs_reference else None
        self._executed: set[str] = set()  # kept for exploration alone
        self._collected = 0  # environment steps before the collection that is under way

    @property
    def counters(self) -> Counters:
        """Counts of the run so far."""
        return self._counters

    @property
    def env_step(self) -> int:
        """Environment steps done."""
        return self._episodes.env_step

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the arrays in a checkpoint, of all hosts together."""
        leaves = jax.tree.leaves((self._algorithm.state, self._replay.state()))
        return sum(leaf.nbytes for leaf in leaves)

    def prompt(self) -> Prompt:
        """The prompt of the first of the current states."""
        return self._episodes.encode()[0]

    def resume(self) -> None:
        """Restores the last committed checkpoint, if any, and cuts the logs back to it."""
        if self._checkpoints.latest is None:
            self._cut_back(update=-1, env_step=-1)
            return
        shapes = abstract(self._algorithm.state)
        self._algorithm.state = None  # makes room on the device for what is read
        update, state, replay, host = self._checkpoints.restore_newest(shapes, self._replay.state())
        self._algorithm.state = state
        self._replay.restore(replay)
        try:
            self._episodes.restore(host["episodes"])
            self._counters.restore(host["counters"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"checkpoint {update} of {self._run.path} does not fit this run: its counters are "
                f"those of another version ({type(error).__name__}: {error})"
            ) from error
        self._cut_back(update=update, env_step=self.env_step)

    def run(
        self,
        is_stopped: Callable[[], bool],
        on_update: Callable[[dict[str, Any], list[dict[str, Any]]], None],
    ) -> None:
        """Updates until all environment steps are done or `is_stopped` says so.

        Args:
          is_stopped: asked between updates; any one of several hosts may say so.
          on_update: called after each update with its row of `metrics.jsonl` and its rows of
            `episodes.jsonl`.
        """
        interval = parse_interval("checkpoint_every", self._config.run.checkpoint_every)
        schedule = Schedule(interval, self.checkpoint_bytes)
        while self.env_step < self._config.run.num_env_steps and not hosts.any_of(is_stopped()):
            row, episode_rows = self._update()
            if interval.number == 1:
                self._checkpoints.wait()  # a kill loses one update at most; the next save waits too
            self._run.append_episodes(episode_rows)
            self._rank(episode_rows)
            self._run.append_metrics(row)
            on_update(row, episode_rows)
            if hosts.any_of(schedule.is_due(self._checkpoints.write_s)):
                self._save()
                schedule.saved()
        if schedule.updates:
            self._save()
        self._checkpoints.wait()

    def _update(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One pass of Algorithm 1's outer loop: a collection, and the gradient steps after it."""
        update, algorithm = self._counters.update + 1, self._algorithm
        self._collected = self.env_step
        timer = Timer("generate_s", "execute_s", "update_s")
        learned: list[Metrics] = []
        new: list[Transition] = []
        rows: list[dict[str, Any]] = []
        outcomes: list[Step] = []
        num_tokens = 0
        weights = self._actor.weights(algorithm.policy_trunk())
        for t in range(self._config.run.steps_per_update):
            remaining = self._config.run.num_env_steps - self.env_step
            if not remaining:
                break
            with timer.measure("generate_s"):
                actions = self._act(weights, update, t)  # a_t ~ pi(. | s_t)
            if t + 1 == self._config.run.steps_per_update or remaining <= len(actions.texts):
                weights = None  # a copy of the model, whose memory a gradient step can use
            started = time.monotonic()
            executing = self._episodes.start(actions.texts[:remaining])
            if t == 0:
                with timer.measure("update_s"):
                    learned += algorithm.while_programs_execute(self._experience([], update))
            steps = self._episodes.collect(executing)  # r_t, s_{t+1}
            timer.add("execute_s", time.monotonic() - started)
            transitions, step_rows = self._episodes.finish(actions, steps)
            outcomes += steps
            self._note_best(step_rows)
            explores = self._mark_exploring(step_rows)
            if self._algorithm.learns_from_exploration:
                explores = [False] * len(transitions)
            new += [each for each, is_out in zip(transitions, explores, strict=True) if not is_out]
            rows += step_rows
            num_tokens += actions.num_tokens
        self._failures.check(outcomes)
        if update == 1:
            algorithm.start(float(np.mean([transition.reward for transition in new])))
        self._replay.add(new)  # D <- D + (s, a, r, s')
        with timer.measure("update_s"):
            learned += algorithm.after_collection(self._experience(new, update))
            metrics = self._fetch(learned) | algorithm.totals()
        self._counters.update = update
        self._counters.recent.extend(row["action"] for row in rows)
        # These depend on the machine and on what its disk remembers; all other columns are the
        # same for the same seed.
        of_the_machine = {
            "reward_cache_hit_rate": float(np.mean([row["cached"] for row in rows])),
            "tokens_per_s": num_tokens / timer.seconds["generate_s"],
            **timer.seconds,
        }
        return self._row(rows, metrics) | of_the_machine, rows

    def inspect(self, count: int) -> list[dict[str, Any]]:
        """The newest actions token by token for the report; empty where there is no credit."""
        newest = self._replay.newest(count)
        if not newest or self._tokenizer is None:
            return []
        found = self._algorithm.inspect(self._collate(newest))
        if found is None:
            return []
        return inspection.to_rows(newest, hosts.fetch(found), self._tokenizer)

    def close(self) -> None:
        """Ends the background execution."""
        self._episodes.close()

    def _cut_back(self, *, update: int, env_step: int) -> None:
        self._run.cut_back(update=update, env_step=env_step, best=self._counters.best)
        with files.understood(self._run.path / EPISODES):
            self._rank(files.read_rows(self._run.path / EPISODES))
        if self._exploration.share:
            rows = files.read_rows(self._run.path / EPISODES)
            self._executed = {row["action"] for row in rows}

    def _save(self) -> None:
        self._checkpoints.save(
            self._counters.update,
            self._algorithm.state,
            self._replay.state(),
            {"episodes": self._episodes.state(), "counters": self._counters.to_json()},
        )

    def _act(self, weights: Any, update: int, t: int) -> Actions:
        """One action for each environment; those that explore are the last ones."""
        key = jax.random.fold_in(jax.random.fold_in(self._key, update), t)
        prompts = self._episodes.encode()
        num_exploiting = len(prompts) - self._num_exploring()
        actions = self._actor.act(
            weights, prompts[:num_exploiting], key, reference_weights=self._reference_weights
        )
        if num_exploiting == len(prompts):
            return actions
        assert isinstance(self._actor, SamplingActor)  # checked with the settings
        exploring = Explorer(self._actor, self._exploration).act(
            weights,
            prompts[num_exploiting:],
            key,
            self._executed.union(actions.texts),
            reference_weights=self._reference_weights,
        )
        return Actions.join([actions, exploring])

    def _num_exploring(self) -> int:
        """Number of environments that explore in the collection that is under way."""
        has_begun = self._collected >= self._exploration.start
        return self._config.run.num_exploring if has_begun else 0

    def _num_learning(self) -> int:
        """Number of environments whose actions the algorithm learns from."""
        num_envs = self._config.run.num_envs
        return num_envs - (not self._algorithm.learns_from_exploration) * self._num_exploring()

    def _mark_exploring(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Notes in the rows of one step which environments explored, and what was executed."""
        if not self._exploration.share:
            return [False] * len(rows)
        first = self._config.run.num_envs - self._num_exploring()
        for index, row in enumerate(rows):
            row["explores"] = index >= first
            self._executed.add(row["action"])
        return [row["explores"] for row in rows]

    def _experience(self, new: list[Transition], update: int) -> Experience:
        return Experience(
            new,
            self._replay,
            collection_size=self._num_learning() * self._config.run.steps_per_update,
            collate=self._collate,
            rng=lambda index: np.random.default_rng([self._config.run.seed, update, index]),
        )

    def _collate(self, transitions: Sequence[Transition]) -> Batch:
        assert self._tokenizer is not None  # algorithms that learn or measure need token ids
        batch = collate(
            transitions,
            pad_id=self._tokenizer.pad_id,
            length_multiple=LENGTH_MULTIPLE,
            max_prompt_length=self._config.model.max_prompt_length,
            max_new_tokens=self._config.sampling.max_new_tokens,
        )
        if not self._algorithm.packs_rows:
            return batch
        microbatch = self._config.finetune.microbatch_size or len(transitions)
        return batch.with_blocks(max(len(transitions) // microbatch, 1))

    def _fetch(self, learned: list[Metrics]) -> dict[str, float]:
        """The scalars of an update, from those of its gradient steps."""
        if not learned:
            return {}
        fetched = hosts.fetch(learned)
        for metrics in fetched:
            if "is_finite" in metrics:
                self._counters.gradient_steps += 1
                check_finite(metrics, self._counters.gradient_steps)
        values: dict[str, list[float]] = {}
        for metrics in fetched:
            for name, value in metrics.items():
                values.setdefault(name, []).append(float(value))
        values.pop("is_finite", None)
        means = {name: float(np.mean(found)) for name, found in values.items()}
        return means | {name: values[name][-1] for name in _OF_LAST_STEP if name in values}

    def _note_best(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            best = self._counters.best
            if not row["error"] and (best is None or row["reward"] > best.reward):
                self._counters.best = self._result(row)
                self._run.write_best(self._counters.best)

    def _rank(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes the programs of rows of `episodes.jsonl` into `top_programs`."""
        written = self._top.ranked
        for row in rows:
            if not row["error"]:
                self._top.note(self._result(row))
        # Before the first programs, a folder that an earlier process left may hold others.
        if not written or self._top.ranked != written:
            self._run.write_top_programs(self._top.ranked)

    def _result(self, row: Mapping[str, Any]) -> Best:
        return Best(
            reward=row["reward"],
            split_scores=tuple(row["split_scores"] or ()),
            env_step=row["env_step"],
            dataset=row["dataset"],
            seed=self._config.run.seed,
            action=row["action"],
            program=self._task.program(row["action"]),
        )

    def _row(self, rows: list[dict[str, Any]], metrics: dict[str, float]) -> dict[str, Any]:
        rewards = [row["reward"] for row in rows]
        exploiting = [row["reward"] for row in rows if not row.get("explores", True)]
        best = self._counters.best
        if taken := sorted(metrics.keys() & _OF_THE_LOOP):
            raise ValueError(f"metrics of an algorithm must not be called {', '.join(taken)}")
        return {
            "env_step": self.env_step,
            "update": self._counters.update,
            "gradient_steps": self._counters.gradient_steps,
            "reward_mean": float(np.mean(rewards)),
            "reward_best": best.reward if best else None,
            "runnable_rate": float(np.mean([not row["error"] for row in rows])),
            "distinct_programs": len(set(self._counters.recent)),
            **({"exploiting_reward_mean": float(np.mean(exploiting))} if exploiting else {}),
            **dict.fromkeys(_ALWAYS),
            **metrics,
        }
