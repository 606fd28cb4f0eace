"""The Python API: what a `Trainer` accepts and returns, and how it resumes a run."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import etpo_jax
import models
from env.execution.results import ExecutionResult
from env.executor import ExecutorError
from env.tables.table import Dataset
from env.tasks.code_task import CodeTask
from models.tokenizer import Tokenizer

CACHE = pathlib.Path(__file__).parents[2] / ".pytest_cache" / "compiled"
PROMPT = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"
# One length bucket: one compilation of each program.
SMALL = {
    "num_env_steps": 24,
    "num_envs": 8,
    "minibatch_size": 8,
    "gradient_steps_per_update": 2,
    "replay_size": 8,
    "max_prompt_length": 64,
    "max_new_tokens": 16,
}
OF_THE_MACHINE = ("generate_s", "execute_s", "update_s", "tokens_per_s", "reward_cache_hit_rate")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Compiled programs outlive the session, so that running the tests again is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
        yield


def reward(prompt, completion):
    assert prompt == PROMPT
    return float("import" in completion) - len(completion) / 100


def make(run_dir, **settings):
    given = {"prompts": [PROMPT], "reward": reward, "quiet": True, **SMALL, **settings}
    return etpo_jax.Trainer(run_dir=run_dir, **given)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_the_seed(rows):
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after an uninterrupted run, its result, and the rows that its callback got."""
    rows = []
    trainer = make(tmp_path_factory.mktemp("run") / "trained", callbacks=[rows.append])
    return trainer, trainer.train(), rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 0.1}, r"--lerning_rate: .*did you mean --\w*learning_rate"),
        ({"num_envs": 0}, r"--num_envs=0: must be >= 1"),
        ({"num_envs": "eight"}, r"--num_envs=eight: must be a whole number"),
        ({"beta": float("inf")}, r"--beta=inf: must be"),
        ({"critic_loss": "no_such"}, r"--critic_loss=no_such: must be one of one_step, "),
        ({"algorithm": "no_such"}, r"--algorithm=no_such: must be one of etpo, "),
        ({"algorithm": "ppo_kl", "trust_region": 0.3}, r"--trust_region: --algorithm=ppo_kl does"),
        ({"prompts": ["a"]}, r"prompts and reward: one is given without the other"),
        ({"reward": reward}, r"prompts and reward: one is given without the other"),
        ({"prompts": [], "reward": reward}, r"prompts is empty"),
        ({"prompts": "one text", "reward": reward}, r"must be a sequence of texts"),
        ({"prompts": ["<FILL_ME><FILL_ME>"], "reward": reward}, r"<FILL_ME> more than once"),
        ({"prompts": ["a"], "reward": "no function"}, r"must be a function"),
        ({"prompts": ["a"], "reward": reward, "task": "a:b"}, r"task: must not be given beside"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_the_message_of_the_flag(settings, message):
    with pytest.raises(ValueError, match=message):
        etpo_jax.Trainer(**settings)


def test_training_needs_a_folder():
    with pytest.raises(ValueError, match="--run_dir is missing"):
        make(None).train()


def test_a_result_holds_what_the_folder_holds(trained):
    trainer, result, _ = trained
    assert result.run_dir == pathlib.Path(trainer.config.run.run_dir)
    assert result.metrics == lines(result.run_dir / "metrics.jsonl")
    assert [row["env_step"] for row in result.metrics] == [8, 16, 24]
    assert result.signal == 0
    episodes = lines(result.run_dir / "episodes.jsonl")
    best = max(episodes, key=lambda row: row["reward"])
    assert (result.best.action, result.best.reward) == (best["action"], best["reward"])
    assert result.best.reward == reward(PROMPT, result.best.action)
    for name in ("best_code.py", "report.html", "curve.png", "config.json"):
        assert (result.run_dir / name).stat().st_size > 0


def test_callbacks_are_called_with_every_row(trained):
    _, result, rows = trained
    assert of_the_seed(rows) == of_the_seed(result.metrics)


def test_a_quiet_trainer_prints_nothing_and_another_one_says_how_the_run_went(trained, capsys):
    trainer, result, _ = trained
    trainer.train()
    assert capsys.readouterr().out == ""
    make(result.run_dir, quiet=False).train()
    output = capsys.readouterr().out
    assert "This run is finished" in output
    assert "Finished 24 environment steps" in output


def test_a_finished_run_is_not_trained_again(trained):
    _, result, _ = trained
    before = (result.run_dir / "metrics.jsonl").read_text()
    called = []
    again = make(result.run_dir, callbacks=[called.append]).train()
    assert (result.run_dir / "metrics.jsonl").read_text() == before
    assert (called, again.metrics, again.best) == ([], result.metrics, result.best)


def test_a_run_without_matplotlib_is_complete_and_drawn_later(trained, tmp_path, capsys):
    run = shutil.copytree(trained[1].run_dir, tmp_path / "carried")
    for name in ("report.html", "curve.png"):
        (run / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("etpo_jax.runs.report")]:
            patch.delitem(sys.modules, name)
        patch.delattr("etpo_jax.runs.report", raising=False)
        patch.delitem(sys.modules, "etpo_jax.runs.charts", raising=False)
        patch.delattr("etpo_jax.runs.charts", raising=False)
        patch.setitem(sys.modules, "matplotlib", None)
        make(run, quiet=False).train()
        assert "matplotlib is not installed" in capsys.readouterr().out
        assert not (run / "report.html").exists()
    make(run).train()
    assert (run / "report.html").exists()
    assert (run / "curve.png").exists()


def test_what_draws_or_fetches_need_not_be_installed_to_train():
    optional = ("matplotlib", "tensorboardX", "openml", "openpyxl", "arff", "torch", "requests")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({optional}))
import etpo_jax.train
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_setting_is_refused_until_the_run_is_given_up(trained, tmp_path):
    run_dir = tmp_path / "run"
    make(run_dir, num_env_steps=8).train()
    with pytest.raises(etpo_jax.UsageError, match="beta"):
        make(run_dir, num_env_steps=8, beta=0.2).train()
    result = make(run_dir, num_env_steps=8, beta=0.2, overwrite=True).train()
    assert [row["env_step"] for row in result.metrics] == [8]
    assert json.loads((run_dir / "config.json").read_text())["beta"] == 0.2


def test_a_callback_stops_the_run_and_another_trainer_finishes_it_alike(trained, tmp_path):
    _, uninterrupted, _ = trained
    run_dir = tmp_path / "run"
    stopped = make(run_dir, callbacks=[lambda row: row["update"] < 1]).train()
    assert [row["update"] for row in stopped.metrics] == [1]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["1"]
    result = make(run_dir).train()
    assert of_the_seed(result.metrics) == of_the_seed(uninterrupted.metrics)
    assert result.best == uninterrupted.best


def test_the_same_trainer_goes_on_after_it_was_stopped(trained, tmp_path):
    _, uninterrupted, _ = trained
    answers = iter([False, None, True])
    trainer = make(tmp_path / "run", callbacks=[lambda row: next(answers)], overwrite=True)
    assert len(trainer.train().metrics) == 1
    assert of_the_seed(trainer.train().metrics) == of_the_seed(uninterrupted.metrics)


def test_a_run_tells_its_prompt_format_and_goes_on_with_more_steps(tmp_path, capsys):
    run_dir = tmp_path / "run"
    make(run_dir, num_env_steps=8, quiet=False).train()
    assert "prompts     infill (auto)\n" in capsys.readouterr().out
    result = make(run_dir, num_env_steps=16).train()
    assert [row["env_step"] for row in result.metrics] == [8, 16]


def test_a_reward_that_raises_is_a_failure_and_the_run_goes_on(tmp_path):
    calls = []

    def fail_at_times(prompt, completion):
        calls.append(completion)
        if len(calls) % 4 == 0:
            raise RuntimeError("no\nluck")
        if len(calls) % 4 == 1:
            return float("nan")
        return 0.5

    result = make(tmp_path / "run", reward=fail_at_times, num_env_steps=16).train()
    episodes = lines(result.run_dir / "episodes.jsonl")
    errors = [row["error"] for row in episodes]
    assert errors[3::4] == ["RuntimeError: no luck"] * 4
    assert all("not a finite number" in error for error in errors[0::4])
    assert errors[1::4] == errors[2::4] == [""] * 4
    assert {row["reward"] for row in episodes if row["error"]} == {-1.0}
    assert [row["runnable_rate"] for row in result.metrics] == [0.5, 0.5]
    assert result.best.reward == 0.5


def test_without_a_completion_that_works_there_is_no_best(tmp_path):
    def fail(prompt, completion):
        raise ValueError(prompt)

    result = make(tmp_path / "run", reward=fail, num_env_steps=8).train()
    assert result.best is None
    assert result.metrics[0]["reward_best"] is None


def test_a_task_of_several_steps_is_trained_from_python(tmp_path):
    class Counting(etpo_jax.Task):
        name = "counting"

        def reset(self, rng):
            return etpo_jax.State(0, {})

        def render(self, state, *, shorten=0):
            return f"step {state.t}: <FILL_ME>"

        def step(self, states, actions, rngs):
            following = [None if s.t else etpo_jax.State(s.t + 1, {}) for s in states]
            return [etpo_jax.Step(1.0, state, "", {}) for state in following]

    result = make(tmp_path / "run", prompts=None, reward=None, task=Counting()).train()
    episodes = lines(result.run_dir / "episodes.jsonl")
    assert [row["prompt"][:6] for row in episodes[::8]] == ["step 0", "step 1", "step 0"]
    assert {row["dataset"] for row in episodes} == {"counting"}


class _Executor:
    """Gives every program the same score, until it is asked for a baseline."""

    isolation = "none"

    def run(self, bodies):
        if any("HistGradientBoosting" in body for body in bodies):
            raise ExecutorError("no process can be started")
        return [ExecutionResult(0.5, (0.5,), "", 0.0) for _ in bodies]

    def close(self):
        pass


def test_baselines_that_cannot_be_run_do_not_end_the_run(tmp_path, capsys):
    dataset = Dataset("mine", "Mine", np.zeros((8, 1)), np.arange(8) % 2, ("a",))
    task = CodeTask(dataset, _Executor())
    settings = {"prompts": None, "reward": None, "task": task, "num_env_steps": 8, "quiet": False}
    result = make(tmp_path / "run", **settings, max_prompt_length=128).train()
    assert result.best.reward == 0.5
    assert not (result.run_dir / "scores.json").exists()
    assert (result.run_dir / "finished.json").exists()
    output = capsys.readouterr().out
    assert "No final scores: ExecutorError: no process can be started\n" in output
    assert "Finished 8 environment steps" in output


def test_generate_completes_at_the_gap_and_at_the_end(trained):
    trainer, _, _ = trained
    prefix = "def build_model(x_train, y_train):\n"
    texts = trainer.generate([PROMPT, prefix, PROMPT], seed=1)
    assert len(texts) == 3
    assert all(isinstance(text, str) for text in texts)
    assert texts == trainer.generate([PROMPT, prefix, PROMPT], seed=1)
    assert texts != trainer.generate([PROMPT, prefix, PROMPT], seed=2)
    assert trainer.generate([]) == []


def test_a_low_temperature_gives_the_most_likely_text(trained):
    trainer, _, _ = trained
    cold = {seed: trainer.generate([PROMPT], temperature=1e-4, seed=seed) for seed in (1, 2, 3)}
    assert cold[1] == cold[2] == cold[3]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("<FILL_ME><FILL_ME>", {}, "at most one <FILL_ME>"),
        (PROMPT * 20, {}, "<FILL_ME>"),
        ("x = 1\n" * 100, {}, "--max_prompt_length=64"),
        (PROMPT, {"temperature": 0.0}, "--temperature=0: must be > 0"),
    ],
)
def test_generate_refuses_what_it_cannot_do(trained, prompt, options, message):
    trainer, _, _ = trained
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.generate([prompt], **options)


def test_a_new_trainer_samples_the_policy_of_the_checkpoint(trained):
    trainer, result, _ = trained
    texts = trainer.generate([PROMPT] * 4, seed=3)
    assert make(result.run_dir).generate([PROMPT] * 4, seed=3) == texts
    assert make(None).generate([PROMPT] * 4, seed=3) != texts  # the untrained model


def test_an_exported_policy_is_a_model(trained, tmp_path):
    trainer, _, _ = trained
    folder = trainer.export(tmp_path / "model")
    assert folder == tmp_path / "model"
    texts = trainer.generate([PROMPT] * 4, seed=3)
    assert make(None, model=str(folder)).generate([PROMPT] * 4, seed=3) == texts
    model, params = models.load(folder)
    tokens = np.array([Tokenizer(folder).encode(PROMPT.split("<FILL_ME>")[0])])
    positions = np.arange(tokens.shape[1])[None]
    logits = models.apply(model, params, tokens, positions, np.ones(tokens.shape, bool))
    assert np.isfinite(logits).all()
    with pytest.raises(etpo_jax.UsageError, match="is there already"):
        trainer.export(folder)
    with pytest.raises(etpo_jax.UsageError, match="no adapter"):
        trainer.export(tmp_path / "adapter", form="peft")


def test_an_adapter_is_exported_by_a_trainer_that_reads_the_checkpoint(tmp_path):
    settings = {"finetune": "lora:rank=2", "num_env_steps": 8}
    make(tmp_path / "run", **settings).train()
    folder = make(tmp_path / "run", **settings).export(tmp_path / "adapter", form="peft")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2


def test_paths_are_relative_to_the_working_folder(trained, tmp_path, monkeypatch):
    _, uninterrupted, _ = trained
    monkeypatch.chdir(tmp_path)
    result = make("here", model="tiny").train()
    assert (tmp_path / "here" / "metrics.jsonl").is_file()
    assert of_the_seed(result.metrics) == of_the_seed(uninterrupted.metrics)


def test_a_run_in_another_thread_than_the_main_one(trained, tmp_path):
    _, uninterrupted, _ = trained
    results = []
    thread = threading.Thread(target=lambda: results.append(make(tmp_path / "run").train()))
    thread.start()
    thread.join()
    (result,) = results
    assert of_the_seed(result.metrics) == of_the_seed(uninterrupted.metrics)


def other_reward(prompt, completion):
    return float(len(completion))


def test_another_reward_or_other_prompts_do_not_continue_a_run(trained):
    trainer, result, _ = trained
    for changed in ({"reward": other_reward}, {"prompts": [PROMPT, PROMPT + "\n"]}):
        with pytest.raises(etpo_jax.UsageError, match=r"--task was .*--overwrite"):
            make(result.run_dir, **changed).train()
        with pytest.raises(etpo_jax.UsageError, match="holds a run with other settings: --task"):
            make(result.run_dir, **changed).generate([PROMPT])
    assert trainer.config.task.task.startswith("prompts and reward ")


def test_a_policy_is_not_read_with_other_settings(trained, tmp_path):
    _, result, _ = trained
    other = make(result.run_dir, finetune="lora:rank=2")
    with pytest.raises(etpo_jax.UsageError, match="--finetune was"):
        other.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("task", [object(), etpo_jax.FunctionTask])
def test_what_is_no_task_is_refused(task):
    with pytest.raises(ValueError, match="task: is not a task"):
        etpo_jax.Trainer(task=task)


def test_numbers_of_numpy_are_numbers(tmp_path):
    trainer = make(tmp_path / "run", num_envs=np.int64(4), beta=np.float32(0.5))
    assert (trainer.config.run.num_envs, trainer.config.learning.beta) == (4, 0.5)
    assert isinstance(trainer.config.run.num_envs, int)


@pytest.mark.parametrize("callbacks", [print, None, [3]])
def test_callbacks_are_functions(callbacks):
    with pytest.raises(ValueError, match=r"callbacks=.*: must be a sequence of functions"):
        etpo_jax.Trainer(callbacks=callbacks)


def test_arguments_of_the_methods_are_checked(trained, tmp_path):
    trainer, _, _ = trained
    with pytest.raises(ValueError, match="prompts is one text"):
        trainer.generate(PROMPT)
    with pytest.raises(ValueError, match="form 'gguf': must be merged or peft"):
        trainer.export(tmp_path / "exported", form="gguf")


def test_a_reward_that_always_fails_is_named_and_never_ends_the_run(tmp_path, caplog):
    def broken(prompt, completion):
        return undefined_name

    make(tmp_path / "run", reward=broken, num_env_steps=16).train()
    warned = [line for line in caplog.messages if "failed for all 8 completions" in line]
    assert len(warned) == 1
    assert "NameError: name 'undefined_name' is not defined" in warned[0]


def test_a_task_whose_step_raises_is_named(tmp_path):
    class Broken(etpo_jax.Task):
        name = "broken"

        def reset(self, rng):
            return etpo_jax.State(0, {})

        def render(self, state, *, shorten=0):
            return "<FILL_ME>"

        def step(self, states, actions, rngs):
            return 1 / 0

    with pytest.raises(
        etpo_jax.UsageError, match=r"^task broken: step raised ZeroDivisionError: .*, line "
    ):
        make(tmp_path / "run", prompts=None, reward=None, task=Broken()).train()
