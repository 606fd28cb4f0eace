"""The program as its users run it: in a process of its own, killed, resumed and given bad input."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.etpo_jax.programs import ROOT, close, environment, run

# One length bucket: one compilation of each program.
SMALL = (
    "--num_env_steps=20",
    "--num_envs=4",
    "--minibatch_size=4",
    "--gradient_steps_per_update=2",
    "--replay_size=12",
    "--max_prompt_length=128",
    "--max_new_tokens=24",
    "--executor=local:workers=1",
    "--reward_cache=off",
)
# What differs between runs of one seed: times, and what the disk remembers.
OF_THE_MACHINE = (
    "generate_s",
    "execute_s",
    "update_s",
    "tokens_per_s",
    "wall_s",
    "cached",
    "reward_cache_hit_rate",
)


def command(*arguments):
    return [sys.executable, "-m", "etpo_jax.train", *map(str, arguments)]


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def programs():
    yield
    close()


def rows(path):
    """The rows of a log without what clock and disk say."""
    lines = path.read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in OF_THE_MACHINE} for line in lines
    ]


def column(path, name):
    """One value of every row of a log."""
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """A folder that remembers rewards, empty before the uninterrupted run."""
    return tmp_path_factory.mktemp("rewards")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, rewards):
    path = tmp_path_factory.mktemp("run") / "uninterrupted"
    result = run(f"--run_dir={path}", *SMALL, f"--reward_cache={rewards}")
    assert result.returncode == 0, result.stdout + result.stderr
    return path, result.stdout


def assert_same_run(path, other):
    for name in ("metrics.jsonl", "episodes.jsonl"):
        assert rows(path / name) == rows(other / name)
    for name in ("best_code.py", "best.json"):
        assert (path / name).read_text() == (other / name).read_text()
    programs = [path / "top_programs", other / "top_programs"]
    mine, others = ({file.name: file.read_text() for file in d.iterdir()} for d in programs)
    assert mine == others


def test_a_run_leaves_everything_it_promises(uninterrupted):
    path, output = uninterrupted
    metrics = rows(path / "metrics.jsonl")
    assert [row["env_step"] for row in metrics] == [4, 8, 12, 16, 20]
    assert [row["gradient_steps"] for row in metrics] == [1, 3, 5, 7, 9]
    promised = "env_step update reward_mean reward_best runnable_rate kl_to_reference entropy "
    promised += "critic_loss policy_loss critic_grad_norm policy_grad_norm"
    assert set(promised.split()) <= set(metrics[0])
    episodes = rows(path / "episodes.jsonl")
    assert [row["env_step"] for row in episodes] == list(range(1, 21))
    assert all(row["prompt"].count("<FILL_ME>") == 1 for row in episodes)
    assert max(row["reward"] for row in episodes) == metrics[-1]["reward_best"]
    promised = "flags.cfg config.json versions.json model_fingerprint.json curve.png report.html"
    for name in promised.split():
        assert (path / name).stat().st_size > 0
    assert json.loads((path / "versions.json").read_text())["isolation"]
    top = json.loads((path / "top_programs" / "index.json").read_text())["programs"]
    best = json.loads((path / "best.json").read_text())
    assert top[0] == {"file": top[0]["file"], **{key: best[key] for key in top[0] if key in best}}
    rewards = [row["reward"] for row in top]
    assert rewards == sorted(rewards, reverse=True)
    assert set(rewards) <= {row["reward"] for row in episodes}
    assert str(path / "best_code.py") in output
    assert len((path / "tokens.jsonl").read_text().splitlines()) == 8
    page = (path / "report.html").read_text()
    for title in ("Credit of each token", "Scores beside baselines", "How to go on"):
        assert title in page


def test_the_best_program_stands_beside_baselines(uninterrupted):
    path, output = uninterrupted
    scores = json.loads((path / "scores.json").read_text())
    best, *baselines = scores["programs"]
    stored = json.loads((path / "best.json").read_text())
    assert (best["name"], best["reward"]) == ("best program", stored["reward"])
    assert len(baselines) == 3
    for baseline in baselines:
        assert baseline["error"] == ""
        # The balance scale is learnt by every one of them.
        assert 0.7 < baseline["reward"] < 1
        assert f"{baseline['name']:20}   {baseline['reward']:.4f}" in output
    assert scores["num_rows"] == 125
    assert 0 < scores["seconds"] < 60


@pytest.mark.parametrize("name", ["best_code.py", "top_programs/01_*.py"])
def test_the_best_program_runs_as_it_stands_wherever_the_run_is_moved(
    uninterrupted, tmp_path, name
):
    moved = tmp_path / "moved"
    shutil.copytree(uninterrupted[0], moved)
    (script,) = moved.glob(name)
    done = subprocess.run(
        [sys.executable, "-I", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    reward = json.loads((moved / "best.json").read_text())["reward"]
    assert f"\nmean      {reward:.6f}\n" in done.stdout


def test_a_finished_run_says_so(uninterrupted):
    path, _ = uninterrupted
    before = (path / "metrics.jsonl").read_bytes()
    # As after a version that did not have them.
    (path / "scores.json").unlink()
    result = run(f"--run_dir={path}", *SMALL)
    assert result.returncode == 0
    assert "finished" in result.stdout
    assert (path / "metrics.jsonl").read_bytes() == before
    assert "gradient boosting" in result.stdout
    assert (path / "scores.json").exists()


def test_a_finished_run_goes_on_with_more_steps(uninterrupted, tmp_path):
    path = tmp_path / "longer"
    shutil.copytree(uninterrupted[0], path)
    result = run(f"--run_dir={path}", *SMALL, "--num_env_steps=24")
    assert result.returncode == 0, result.stderr
    assert rows(path / "metrics.jsonl")[:5] == rows(uninterrupted[0] / "metrics.jsonl")
    assert rows(path / "metrics.jsonl")[-1]["env_step"] == 24


def wait_for(process, is_reached):
    """Polls until `is_reached`; the process must not end before."""
    deadline = time.monotonic() + 200
    while not is_reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "is_warm"), [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["INT", "TERM"]
)
def test_a_signal_ends_cleanly_and_the_same_command_resumes(
    uninterrupted, rewards, tmp_path, number, is_warm
):
    """Rewards that the disk remembers are the same numbers, so the logs agree too."""
    path = tmp_path / "run"
    flags = [*SMALL, f"--reward_cache={rewards}"] if is_warm else SMALL
    process = start(f"--run_dir={path}", *flags)
    log = path / "metrics.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") >= 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the same command again" in output
    assert len(rows(log)) < 5
    result = run(f"--run_dir={path}", *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Resuming" in result.stdout
    assert_same_run(path, uninterrupted[0])
    is_cached = column(path / "episodes.jsonl", "cached")
    means = [sum(is_cached[start : start + 4]) / 4 for start in range(0, 20, 4)]
    assert column(log, "reward_cache_hit_rate") == means
    assert (sum(is_cached) > sum(column(uninterrupted[0] / "episodes.jsonl", "cached"))) == is_warm


def test_kill_during_and_between_saves_loses_nothing_but_the_work_since(uninterrupted, tmp_path):
    path = tmp_path / "run"
    log, checkpoints = path / "metrics.jsonl", path / "checkpoints"
    # During a save: its unfinished folder is there.
    process = start(f"--run_dir={path}", *SMALL, "--checkpoint_every=1")
    wait_for(process, lambda: list(checkpoints.glob("*tmp*")))
    process.kill()
    process.communicate()
    # Between saves: a checkpoint is committed and further rows stand in the log.
    process = start(f"--run_dir={path}", *SMALL, "--checkpoint_every=2")

    def committed():
        return [int(child.name) for child in checkpoints.iterdir() if child.name.isdecimal()]

    # Saving goes on in the background, so the third row may be there before the checkpoint of 2.
    wait_for(
        process, lambda: log.exists() and log.read_text().count("\n") >= 3 and bool(committed())
    )
    process.kill()
    process.communicate()
    assert len(rows(log)) - max(committed()) <= 2
    result = run(f"--run_dir={path}", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_run(path, uninterrupted[0])


def test_evaluate_and_inspect_read_the_run(uninterrupted, tmp_path):
    path, _ = uninterrupted
    text = tmp_path / "text.txt"
    text.write_text("from sklearn.svm import SVC\nmodel = SVC(probability=True)\n" * 9)
    result = run(
        *(f"--run_dir={path}", "--num_samples=8", "--num_envs=4", "--json"),
        *("--perplexity", f"--perplexity_files={text}", "--perplexity_window=64"),
        program="evaluate",
    )
    assert result.returncode == 0, result.stderr
    statistics = json.loads(result.stdout)
    (perplexity,) = statistics["perplexity"]
    assert perplexity["text"] == str(text)
    # Several windows; training has changed the policy, and not by much.
    assert perplexity["tokens"] > 100
    assert 1 < perplexity["before"] < 1024
    assert 0 < abs(perplexity["after"] / perplexity["before"] - 1) < 0.5
    assert statistics["programs"] == 8
    assert statistics["first_programs"] + statistics["reflective_programs"] == 8
    assert -1 <= statistics["reward_mean"] <= 1
    short = run(f"--run_dir={path}", program="inspect_run").stdout
    assert short.count("\n") <= 24
    inspected = run(f"--run_dir={path}", "--arrays", program="inspect_run")
    assert inspected.returncode == 0, inspected.stderr
    assert "20 of 20 environment steps, 5 updates" in inspected.stdout
    assert "critic/trunk/params/lm_head/kernel" in inspected.stdout


def test_evaluate_compares_the_formats(tmp_path):
    flags = ["--model=tiny", "--prompt_format=all", "--num_samples=6", "--num_envs=6"]
    result = run(*flags, "--max_new_tokens=8", "--max_steps=1", program="evaluate")
    assert result.returncode == 0, result.stderr
    header = next(line for line in result.stdout.splitlines() if line.startswith("prompt format"))
    assert header.split() == ["prompt", "format", "infill", "complete"]
    assert "running programs" in result.stdout
    assert result.stdout.count("complete failed: ") == 3
    refused = run("--model=tiny", "--prompt_format=chat", program="evaluate")
    assert refused.returncode == 2
    assert "--prompt_format=chat: this model's tokenizer has no chat template" in refused.stderr


@pytest.mark.parametrize("dataset", ["toy", "questions:csv:TABLE"])
def test_a_task_that_is_not_about_code(tmp_path, dataset):
    path, table = tmp_path / "run", tmp_path / "t.csv"
    table.write_text("a,b,c\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(24)))
    flags = [f"--dataset={dataset.replace('TABLE', str(table))}", "--max_steps=2"]
    # Questions are longer than the prompts of the other runs.
    target = ["--target=c", "--max_prompt_length=192"] if "TABLE" in dataset else []
    result = run(f"--run_dir={path}", *SMALL, *flags, *target, "--num_env_steps=12")
    assert result.returncode == 0, result.stdout + result.stderr
    episodes = rows(path / "episodes.jsonl")
    assert [row["t"] for row in episodes] == [0] * 4 + [1] * 4 + [0] * 4
    metrics = rows(path / "metrics.jsonl")
    assert [row["gradient_steps"] for row in metrics] == [1, 3, 5]
    # The stand-in finds no answer to a question, but letters of the toy's words.
    assert any(row["reward"] > 0 for row in episodes) == (dataset == "toy")
    assert metrics[-1]["kl_to_reference"] > 0 or dataset != "toy"
    assert "executes no programs" in json.loads((path / "versions.json").read_text())["isolation"]


BAD = {
    "no run directory": ((), "--run_dir is missing"),
    "unknown data set": (("--run_dir=X", "--dataset=iris"), "iris"),
    "unknown flag": (("--run_dir=X", "--num_env=4"), "num_envs"),
    "positional argument": (("--run_dir=X", "train"), "'train'"),
    "missing model": (("--run_dir=X", "--model=no/such"), "no/such"),
    "beta": (("--run_dir=X", "--beta=0"), "--beta=0: must be > 0"),
    "no environments": (("--run_dir=X", "--num_envs=0"), "--num_envs=0: must be >= 1"),
    "choice": (("--run_dir=X", "--critic_loss=td"), "critic_loss"),
    "a number": (("--run_dir=X", "--gamma=high"), "--gamma=high: must be a number"),
    "a whole number": (("--run_dir=X", "--num_envs=abc"), "--num_envs=abc: must be a whole number"),
    "near name": (("--run_dir=X", "--lerning_rate=1"), "did you mean --policy_learning_rate"),
    "infinite": (("--run_dir=X", "--beta=inf"), "--beta=inf: must be "),
    "not read": (
        ("--run_dir=X", "--algorithm=ppo_kl", "--critic_loss=path"),
        "--critic_loss: --algorithm=ppo_kl does not read it, etpo does",
    ),
    "unwritable": (("--run_dir=/proc/run",), "/proc/run"),
    "tracker": (("--run_dir=X", "--trackers=wandb,neptune"), "'neptune' is not one of tensorboard"),
    "window": (("--run_dir=X", "--max_new_tokens=5000"), "window of"),
    "mesh": (("--run_dir=X", "--mesh=fsdp:7"), "--mesh=fsdp:7"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """The completed process of each bad input."""
    folder = tmp_path_factory.mktemp("bad")
    return {
        name: run(*(text.replace("X", str(folder / f"run{number}"), 1) for text in arguments))
        for number, (name, (arguments, _)) in enumerate(BAD.items())
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, refusals):
    result = refusals[name]
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert BAD[name][1] in line


def broken_folder(tmp_path, break_it):
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "tiny", folder)
    break_it(folder)
    result = run(f"--run_dir={tmp_path / 'run'}", f"--model={folder}", *SMALL)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def test_a_folder_without_tokenizer_is_named(tmp_path):
    line = broken_folder(tmp_path, lambda folder: (folder / "tokenizer.json").unlink())
    assert "tokenizer" in line


def test_truncated_weights_are_named(tmp_path):
    def truncate(folder):
        file = folder / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)

    assert "model.safetensors" in broken_folder(tmp_path, truncate)


def test_another_configuration_is_refused_by_name(uninterrupted, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(uninterrupted[0], path)
    result = run(f"--run_dir={path}", *SMALL, "--beta=0.2")
    assert result.returncode == 2
    for text in ("beta", "0.2", "0.06", "--overwrite"):
        assert text in result.stderr
    assert rows(path / "metrics.jsonl") == rows(uninterrupted[0] / "metrics.jsonl")


def test_a_run_does_not_go_on_over_another_model(tmp_path):
    folder, path = tmp_path / "model", tmp_path / "run"
    shutil.copytree(ROOT / "models" / "tiny", folder)
    arguments = (f"--run_dir={path}", f"--model={folder}", *SMALL)
    assert run(*arguments, "--num_env_steps=4").returncode == 0
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"another!")
    exported = (f"--run_dir={path}", f"--output={tmp_path / 'exported'}")
    for program, more in (("train", arguments), ("evaluate", exported[:1]), ("export", exported)):
        result = run(*more, program=program)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.strip().splitlines()
        assert f"--model={folder}: model.safetensors changed since {path} began" in line


def can_mount():
    """True if the test may mount a file system of a few megabytes."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(folder)]
    if not can_mount() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_refused_and_one_that_fills_up_is_one_line(small_disk):
    path, filler = small_disk / "run", small_disk / "filler"
    endless = (f"--run_dir={path}", *SMALL, "--num_env_steps=1000000")
    result = run(*endless)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert "checkpoints need " in line
    subprocess.run(["mount", "-o", "remount,size=64M", str(small_disk)], check=True)
    with subprocess.Popen(
        command(*endless),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (path / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.1)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(2**12)):
                pass
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    # Whatever was under way when the first write failed keeps silent.
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: no space left on the disk"), errors
    filler.unlink()
    done = column(path / "metrics.jsonl", "env_step")[-1]
    result = run(f"--run_dir={path}", *SMALL, f"--num_env_steps={done + 8}")
    assert result.returncode == 0, result.stdout + result.stderr


def test_dry_run_and_help_change_nothing(tmp_path):
    result = run("--dry_run", f"--run_dir={tmp_path / 'run'}", "--num_env_steps=100")
    assert result.returncode == 0, result.stderr
    assert "100 environment steps = 7 updates of 16 actions" in result.stdout
    assert not (tmp_path / "run").exists()
    for part in (
        "\nwall        ",
        "3 classes of 56, 10, 59 rows",
        "\ndisk        ",
        "| import numpy",
    ):
        assert part in result.stdout
    result = run("--dry_run", "--dataset=missing.csv", "--target=a")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "missing.csv" in result.stderr
    text = run("--help").stdout
    for name in ("run_dir", "beta", "critic_loss", "isolation", "overwrite", "dry_run"):
        assert f"--{name}" in text or f"--[no]{name}" in text
