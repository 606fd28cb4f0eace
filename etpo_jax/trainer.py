"""The Python API: one run from settings to results; the command line is a thin user of it."""

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from env import shell_limits
from env.base import Task, UsageError
from env.tasks.function_task import FunctionTask, digest
from env.tasks.loading import check_task
from etpo_jax import about_tables, build, startup
from etpo_jax.acting import formats
from etpo_jax.acting.rollout import SamplingActor
from etpo_jax.algorithms.base import Algorithm
from etpo_jax.build import Agent, Language
from etpo_jax.config import Config
from etpo_jax.devices import hosts
from etpo_jax.devices.compilations import Compilations
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.loop import Loop
from etpo_jax.roles import Role
from etpo_jax.runs import (
    directory,
    files,
    fingerprint,
    policy_folder,
    progress,
    schedule,
    trackers,
)
from etpo_jax.runs.best import Best
from etpo_jax.runs.checkpoint import Checkpoints, read_role
from etpo_jax.runs.console import Console
from etpo_jax.runs.directory import FollowedRun, RunDirectory
from etpo_jax.runs.steps import committed_steps, read_newest
from etpo_jax.runs.stopping import NOTICE, StopSignals
from etpo_jax.runs.tracked_run import TrackedRun

INSPECTED_ACTIONS = 8
"""Number of the newest actions that the report shows token by token."""

Row = dict[str, Any]
Callback = Callable[[Row], bool | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of a run, as far as it has come.

    Attributes:
      run_dir: the folder of the run.
      metrics: one dict for each update, the rows of `metrics.jsonl`.
      best: the best action that worked, with `action`, `reward` and the whole `program`; None if
        none did.
      signal: the number of the signal that stopped the run; 0 without any.
    """

    run_dir: Path
    metrics: list[Row]
    best: Best | None
    signal: int = 0


class Trainer:
    """One run of an algorithm on a task: trains, samples the policy and exports it.

    The run lives in a run directory. `train` resumes it from its last checkpoint, as the same
    command line does, and a finished run is not trained again. Devices, model and processes are
    taken when they are first needed.

        def reward(prompt: str, completion: str) -> float: ...

        trainer = etpo_jax.Trainer(prompts=["..."], reward=reward, run_dir="runs/mine")
        result = trainer.train()
    """

    def __init__(
        self,
        *,
        task: Task | str | None = None,
        prompts: Sequence[str] | None = None,
        reward: Callable[[str, str], float] | None = None,
        callbacks: Sequence[Callback] = (),
        overwrite: bool = False,
        quiet: bool = False,
        **settings: Any,
    ):
        """Checks the settings; nothing is loaded yet.

        Args:
          task: the task to learn; `package.module:factory` as for `--task`, or None for that of
            `dataset` or of `prompts` and `reward`. The caller closes a task that is given here.
          prompts: texts to complete, each with at most one `<FILL_ME>`; without one the completion
            follows the prompt.
          reward: reward of a completion, from (prompt, completion); it may raise, which counts as
            a failure with that error.
          callbacks: called with the row of `metrics.jsonl` after each update; one that returns
            False stops the run, with a checkpoint.
          overwrite: delete the run in `run_dir` and start anew.
          quiet: print nothing.
          **settings: any setting by the name of its flag, such as `model`, `run_dir`, `beta`
            (`etpo train --help` lists them).

        Raises:
          ValueError: a wrong name or value, with the message of the flag; prompts without a reward
            or the other way round.
        """
        if isinstance(task, str):
            settings["task"], task = task, None
        if (prompts is None) != (reward is None):
            raise ValueError("prompts and reward: one is given without the other")
        if prompts is not None and (task is not None or settings.get("task")):
            raise ValueError("task: must not be given beside prompts and reward")
        if prompts is not None and reward is not None:
            task = FunctionTask(prompts, reward)
            settings["task"] = f"prompts and reward {digest(prompts, reward)}{build.IN_PYTHON}"
        elif task is not None:
            check_task(task, "task")
            kind = type(task)
            settings["task"] = f"{kind.__module__}.{kind.__qualname__}{build.IN_PYTHON}"
        self.config = Config.from_dict(settings)
        self._task = task
        if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
            raise ValueError(f"callbacks={callbacks!r:.80}: must be a sequence of functions")
        self._callbacks = tuple(callbacks)
        self._overwrite = overwrite
        self._console = Console(is_quiet=quiet)
        self._algorithm: Algorithm | None = None
        self._actors: dict[float, SamplingActor] = {}

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> "Trainer":
        """A trainer with settings that are already checked; options as in the constructor."""
        return cls(**options, **config.to_dict())

    def train(self) -> Result:
        """Trains until all environment steps are done, or a callback or a signal says stop.

        The first Ctrl-C or SIGTERM stops the run after the update that is under way.

        Raises:
          ValueError: there is no `run_dir` among the settings.
          UsageError: the run directory, the task or the model cannot be used.
          NonFiniteError: a loss or gradient was not finite; checkpoints hold the state before it.
        """
        config, path = self.config, self._run_path
        if path is None:
            raise ValueError("--run_dir is missing: name the folder that keeps the run")
        self._console.greet(*startup.title(config))
        shell_limits.check()
        build.use_compilation_cache()
        stop = StopSignals("" if self._console.is_quiet else NOTICE)
        is_main = threading.current_thread() is threading.main_thread()
        with (
            stop if is_main else contextlib.nullcontext(),
            jax.set_mesh(self._mesh),
            hosts.first_then_all(lambda: self._open_run(path), lambda: FollowedRun(path)) as run,
        ):
            self._overwrite = False  # a second call goes on with what the first one made
            finished = run.finished
            if finished is not None and finished["env_step"] >= config.run.num_env_steps:
                self._console.say(
                    "This run is finished; a larger --num_env_steps continues it, --overwrite "
                    "starts it anew.\n"
                )
                self._add_missing_scores(run.path)
            else:
                self._train(run, stop)
        self._console.say(progress.summary(path))
        return Result(path, *_read_results(path), signal=int(stop.received or 0))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Samples one completion for each prompt from the policy as it stands.

        That is the policy that this trainer has trained, else that of the newest checkpoint in
        `run_dir`, else the untrained model.

        Args:
          prompts: texts with at most one `<FILL_ME>`.
          temperature: in place of the setting; above 0.
          seed: seed of the sampling.

        Raises:
          ValueError: a prompt that is too long or has several markers, or a temperature of 0.
          UsageError: the model cannot be used.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts is one text and must be a sequence of texts")
        if not prompts:
            return []
        config = self.config
        if temperature is not None:
            config = config.replace(temperature=temperature)
        with jax.set_mesh(self._mesh):
            language, policy = self._language, self._policy()
            prompt_format = formats.choose(config.task.format_name, language.tokenizer)
            encoded = [
                formats.text_prompt(language.tokenizer, text, prompt_format) for text in prompts
            ]
            longest = max(len(prompt.tokens) for prompt in encoded)
            if longest > (limit := config.model.max_prompt_length):
                raise ValueError(f"a prompt has {longest} tokens: --max_prompt_length={limit}")
            if (key := config.sampling.temperature) not in self._actors:
                self._actors[key] = build.make_actor(config, language, self._mesh)
            actor = self._actors[key]
            actions = actor.act(
                actor.weights(policy),
                encoded,
                jax.random.key(seed),
                reference_weights=(actor.weights({}) if config.samples_with_reference else None),
            )
        return actions.texts

    def export(
        self, folder: str | os.PathLike[str], *, form: policy_folder.Form = "merged"
    ) -> Path:
        """Writes the policy into a new folder that `transformers` and `--model` read.

        Args:
          folder: the folder to be made.
          form: "merged" for a whole model, "peft" for an adapter to the model that was trained.

        Returns:
          The folder.

        Raises:
          UsageError: the folder is there already, or there is no adapter.
        """
        output = Path(folder).expanduser()
        policy_folder.check_new(output)
        with jax.set_mesh(self._mesh):
            policy = self._policy()
        policy_folder.write_policy(output, self.config, policy, self._mesh, form=form)
        return output

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return build_mesh(self.config.model.mesh)

    @functools.cached_property
    def _language(self) -> Language:
        """The language model, read once."""
        build.use_compilation_cache()
        return build.load_language(self.config, self._mesh)

    def _policy(self) -> Role:
        """Variables of the policy: as trained here, of the newest checkpoint, or untrained."""
        if self._algorithm is not None:
            return self._algorithm.policy_trunk()
        config = self.config
        if getattr(config.learning, "endpoint", ""):
            raise UsageError(f"--endpoint={config.learning.endpoint}: its model is not here")
        keys, path = config.algorithm.policy_keys(config), self._run_path
        if not keys or not path or not committed_steps(path / directory.CHECKPOINTS):
            return {}
        directory.check_settings(path, config.to_dict(), config.may_differ)
        fingerprint.check(path, config.model.model)
        folder, mesh = path / directory.CHECKPOINTS, self._mesh
        return read_newest(folder, None, lambda path: read_role(path, keys, mesh))[1]

    @property
    def _run_path(self) -> Path | None:
        run_dir = self.config.run.run_dir
        return Path(run_dir).expanduser() if run_dir else None

    def _open_run(self, path: Path) -> RunDirectory:
        trackers.check(self.config.run.tracker_names)
        return RunDirectory.open(
            path,
            self.config.to_dict(),
            may_differ=self.config.may_differ,
            overwrite=self._overwrite,
            defaults=Config.defaults(self.config.run.algorithm),
        )

    def _train(self, run: RunDirectory, stop: StopSignals) -> None:
        config = self.config
        # The task starts its processes first: they get ready while the model is loaded.
        with (
            self._open_task() as task,
            Checkpoints(run.checkpoints_path, schedule.KEPT) as checkpoints,
            Compilations(lambda text: self._console.tell(("compiling", text))) as compilations,
        ):
            run.record(
                isolation=build.isolation_of(task),
                devices=[str(device) for device in self._mesh.devices.flat],
            )
            self._console.tell(*startup.about_task(config, task, self._mesh))
            hosts.first_then_all(
                lambda: about_tables.store_preparation(run, config, task), lambda: None
            )
            self._algorithm = None  # of an earlier call, whose arrays make room
            agent = self._make_agent(run, task)
            tokenizer = agent.language.tokenizer if agent.language else None
            loop = Loop(
                config,
                run,
                checkpoints,
                task,
                tokenizer,
                agent.prompts,
                agent.actor,
                agent.algorithm,
            )
            try:
                hosts.first_then_all(
                    lambda: schedule.check_disk(run.checkpoints_path, loop.checkpoint_bytes),
                    lambda: None,
                )
                loop.resume()
                self._algorithm = agent.algorithm
                self._console.tell(*startup.about_training(config, agent.algorithm.state))
                self._console.tell(startup.about_prompt(loop.prompt()))
                self._run(run, loop, task, stop, compilations)
            finally:
                loop.close()
        if hosts.is_first() and loop.env_step:
            if loop.env_step >= config.run.num_env_steps:
                run.mark_finished({"env_step": loop.env_step, "update": loop.counters.update})
            self._draw(run.path)

    def _run(
        self,
        run: RunDirectory,
        loop: Loop,
        task: Task,
        stop: StopSignals,
        compilations: Compilations,
    ) -> None:
        """The loop with all that watches it, then final scores; only the first host speaks."""
        stops: list[bool] = []

        def is_stopped() -> bool:
            return stop.is_stopped() or any(stops)

        def end() -> None:
            """What all hosts do together after the last update."""
            stop.share(hosts.exchange)
            if loop.env_step:
                run.write_tokens(loop.inspect(INSPECTED_ACTIONS))

        if not hosts.is_first():
            loop.run(is_stopped, lambda row, episodes: None)
            end()
            return
        start, total = loop.env_step, self.config.run.num_env_steps
        if start:
            self._console.say(f"Resuming {run.path} at environment step {start} of {total}.")
        tracked = TrackedRun.read(run.path, self.config, loop.counters.update)
        names = self.config.run.tracker_names
        with trackers.Trackers(names, tracked, self._console.say) as shown_elsewhere:
            with progress.shown(total, start, compilations, self._console) as show:

                def on_update(row: Row, episodes: list[Row]) -> None:
                    shown_elsewhere.write(row, episodes)
                    if loop.env_step - start <= self.config.run.collection_size:
                        self._console.tell(("first update", f"after {compilations.summary()}"))
                    show(row)
                    # NumPy's False stops as well.
                    answers = [callback(row) for callback in self._callbacks]
                    stops.extend(answer is not None and not answer for answer in answers)

                loop.run(is_stopped, on_update)
            end()
            if loop.env_step:
                self._score(run.path, loop.counters.best, contextlib.nullcontext(task))
                shown_elsewhere.write_scores()

    def _add_missing_scores(self, path: Path) -> None:
        """Completes a finished run that ended before its scores or its report were written."""
        if not hosts.is_first():
            return
        _, best = _read_results(path)
        is_missing = not (path / directory.SCORES).exists() and best and best.split_scores
        if is_missing:
            self._score(path, best, self._open_task())
        if is_missing or not (path / directory.REPORT).exists():
            self._draw(path)

    def _draw(self, path: Path) -> None:
        """Writes `curve.png` and `report.html`; training itself does not need matplotlib."""
        try:
            from etpo_jax.runs import report
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            self._console.say(
                "No curve.png and no report.html: matplotlib is not installed. The same command "
                "where it is, on a copy of the run as well, writes them."
            )
            return
        report.write_curve(path)
        report.write_report(path)

    def _make_agent(self, run: RunDirectory, task: Task) -> Agent:
        config = self.config
        if getattr(config.learning, "endpoint", ""):
            if hosts.count() > 1:
                raise UsageError("--endpoint: plays on a single host")
            return build.make_endpoint_agent(config, task)
        fingerprint.check(run.path, config.model.model)
        started = time.monotonic()
        language = self._language
        self._console.tell(*startup.about_model(config, language, time.monotonic() - started))
        agent = build.make_agent(config, task, language, self._mesh)
        if hosts.is_first():
            fingerprint.note(run.path, config.model.model)
        return agent

    def _score(
        self, path: Path, best: Best | None, opened: contextlib.AbstractContextManager[Task]
    ) -> None:
        """Writes `scores.json`, for a task about a table; a failure does not end the run."""
        try:
            with opened as task:
                about_tables.write_scores(path, self.config, task, best)
        except Exception as error:  # the run itself is complete
            self._console.say(f"No final scores: {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def _open_task(self) -> Iterator[Task]:
        if self._task is not None:
            yield self._task
            return
        with build.open_task(self.config) as task:
            yield task


def _read_results(path: Path) -> tuple[list[Row], Best | None]:
    """Rows of `metrics.jsonl` and the best program of a run."""
    metrics, best = path / directory.METRICS, path / directory.BEST
    rows = [dict(row) for row in files.read_rows(metrics)] if metrics.exists() else []
    with files.understood(best):
        return rows, Best.from_json(files.read_json(best)) if best.exists() else None
