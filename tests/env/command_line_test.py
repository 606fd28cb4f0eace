"""command_line: help, version, flagfiles and what bad flags are answered."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags

from env import command_line
from env.base import UsageError
from env.version import __version__


def registry():
    values = flags.FlagValues()
    flags.DEFINE_integer("num_envs", 8, "Episodes at a time.", 1, flag_values=values)
    flags.DEFINE_float("policy_learning_rate", 1e-3, "Rate of the policy.", flag_values=values)
    flags.DEFINE_float("critic_learning_rate", 2e-3, "Rate of the critic.", flag_values=values)
    flags.DEFINE_float("gamma", 0.99, "Discount.", 0, 1, flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Start anew.", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Numbers.", flag_values=values)
    flags.DEFINE_string("run_dir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_list("names", ["a", "b"], "Names.", flag_values=values)
    return values


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a program with arguments; returns its status, output and errors."""

    def call(*arguments, main=lambda: None, values=None, **options):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.run(main, flag_values=values or registry(), **options)
        return (caught.value.code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--num_envs=abc", "--num_envs=abc: must be a whole number >= 1"),
        ("--num_envs=1.5", "--num_envs=1.5: must be a whole number >= 1"),
        ("--num_envs=0", "--num_envs=0: must be a whole number >= 1"),
        ("--num_envs=", "--num_envs=: must be a whole number >= 1"),
        ("--num_envs=a: b", "--num_envs=a: b: must be a whole number >= 1"),
        ("--num_envs", "--num_envs: needs a value"),
        ("--policy_learning_rate=x", "--policy_learning_rate=x: must be a number"),
        ("--gamma=2", "--gamma=2: must be a number >= 0 and <= 1"),
        ("--gamma=nan", "--gamma=nan: must be a finite number"),
        ("--policy_learning_rate=inf", "--policy_learning_rate=inf: must be a finite number"),
        ("--overwrite=perhaps", "--overwrite=perhaps: must be true or false"),
        ("--nooverwrite=true", "--nooverwrite=true does not take an argument"),
        ("--dtype=int8", "--dtype=int8: must be one of float32, bfloat16"),
        ("extra", "unexpected argument 'extra': every option is a --flag"),
        ("-", "unexpected argument '-': every option is a --flag"),
        ("tests", "unexpected argument 'tests': did you mean --run_dir=tests?"),
        ("--num_env=4", "unknown flag --num_env; did you mean --num_envs?"),
        ("--num-envs=4", "unknown flag --num-envs; did you mean --num_envs?"),
        ("--nooverwrit", "unknown flag --nooverwrit; did you mean --nooverwrite?"),
        ("--zebra", "unknown flag --zebra; --help lists the flags"),
        (
            "--lerning_rate=1",
            "unknown flag --lerning_rate; did you mean --policy_learning_rate or "
            "--critic_learning_rate?",
        ),
        ("--flagfile=none.flags", "--flagfile=none.flags: there is no such file"),
    ],
)
def test_bad_arguments_are_one_line(call, monkeypatch, argument, message):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    assert call(argument) == (2, "", f"error: {message}\n")


def test_an_unknown_flag_that_is_now_a_setting_names_its_flag(call):
    values = registry()
    flags.DEFINE_string("limits", "", "Limits, such as timeout_s=10,cpu_s=5.", flag_values=values)
    status, _, error = call("--timeout_s=10", values=values)
    message = "error: unknown flag --timeout_s; timeout_s is a setting of --limits\n"
    assert (status, error) == (2, message)


def test_short_names_suggest_the_flags_that_hold_them():
    names = ["num_env_steps", "max_steps", "steps_per_update", "seed"]
    assert command_line.near_names("steps", names) == names[:3]


@pytest.mark.parametrize("result", [None, 0, 1])
def test_the_status_is_that_of_main(call, result):
    assert call(main=lambda: result) == (result, "", "")


def test_errors_meant_for_the_user_are_one_line_and_bugs_keep_their_traceback(call, monkeypatch):
    def fail(error):
        def main():
            raise error

        return main

    expected = (2, "", "error: two lines\n")
    assert call(main=fail(UsageError("two\n lines"))) == expected
    assert call(main=fail(KeyError("x")), errors=(KeyError,)) == (2, "", "error: 'x'\n")
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        command_line.run(fail(ZeroDivisionError()), flag_values=registry())


def test_flagfiles_are_expanded_and_shown_before_parsing(call, tmp_path):
    (tmp_path / "small.flags").write_text("--num_envs=2\n--mine=3\n")
    values, seen = registry(), []

    def before_parsing(arguments):
        seen.extend(arguments)
        flags.DEFINE_integer("mine", 1, "A flag of the user's algorithm.", flag_values=values)

    options = {"flagfile_folders": [tmp_path], "before_parsing": before_parsing}
    assert call("--flagfile=small.flags", "--gamma=0", values=values, **options)[0] is None
    assert seen == ["--num_envs=2", "--mine=3", "--gamma=0"]
    assert (values["num_envs"].value, values["mine"].value, values["gamma"].value) == (2, 3, 0)


def test_what_is_refused_before_parsing_is_one_line(call):
    def refuse(arguments):
        raise UsageError("no such algorithm")

    assert call(before_parsing=refuse) == (2, "", "error: no such algorithm\n")


def test_every_program_says_its_version(call):
    assert call("--version") == (0, f"etpo_jax {__version__}\n", "")


SECTIONS = [("First things", ["run_dir", "num_envs", "absent"]), ("Numbers", ["dtype", "gamma"])]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_listed_by_section(call, flag):
    status, out, err = call(flag, sections=SECTIONS)
    assert (status, err) == (0, "")
    assert out.startswith(f"{__doc__}\n\nFirst things:\n  --run_dir  ")
    titles = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["First things:", "Numbers:", "Other flags:", "General:"]
    words = " ".join(out.split())
    assert "--run_dir Folder of the run. --num_envs=8 Episodes at a time." in words
    assert "--dtype=float32 Numbers. (float32, bfloat16) --gamma=0.99 Discount." in words
    assert "--overwrite=false Start anew." in words
    assert "--names=a,b Names." in words
    for name in ("-h, --help", "--version", "--flagfile=FILE"):
        assert out.count(f"  {name} ") == 1
    assert "None" not in out


def test_without_sections_help_is_one_list(call):
    out = call("--help")[1]
    titles = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Flags:", "General:"]


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("90", 90), ("200", 100)])
def test_help_fits_the_terminal(call, monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    values = registry()
    flags.DEFINE_string("long_name_of_a_flag_with", "a long default", "w " * 99, flag_values=values)
    longest = max(map(len, call("--help", values=values)[1].splitlines()))
    assert width - 3 <= longest <= width


def test_a_reader_of_the_help_may_stop_early():
    program = "from env import command_line; command_line.run(print)"
    with subprocess.Popen(
        [sys.executable, "-c", program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def run_program(tmp_path, main, *, pipe="", **environment):
    """Runs a program with that `main` in a shell; its exit code, output and errors."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, socket\n"
        "from env import command_line\n"
        f"def main():\n    {main}\n"
        "command_line.run(main)\n"
    )
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} {program} {pipe}; exit "${{PIPESTATUS[0]}}"'],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_a_program_quietly(tmp_path, unbuffered):
    outcome = run_program(
        tmp_path, "print('x' * 100_000)", pipe="| head -c 1", PYTHONUNBUFFERED=unbuffered
    )
    assert outcome == (128 + signal.SIGPIPE, "x", "")


@pytest.mark.parametrize("pipe", ["", "| cat", "> /dev/null"])
def test_a_broken_pipe_of_anything_else_keeps_its_traceback(tmp_path, pipe):
    main = "a, b = socket.socketpair(); b.close(); print('begun'); a.send(b'x')"
    code, _, errors = run_program(tmp_path, main, pipe=pipe)
    assert code == 1
    assert "a.send(b'x')" in errors
    assert "BrokenPipeError" in errors


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ("open('/etc/hostname/x')", "[Errno 20] Not a directory: '/etc/hostname/x'"),
        ("os.mkdir('/')", "[Errno 17] File exists: '/'"),
        ("import nosuchmodule.x", "the module nosuchmodule is not installed, or cannot be loaded"),
        ("raise MemoryError", "there is not enough memory (MemoryError"),
        ("open('/a\\nb\\x1b')", "[Errno 2] No such file or directory: '/a\\nb\\x1b'"),
    ],
)
def test_what_is_wrong_outside_of_the_program_is_one_line(tmp_path, main, message):
    code, out, errors = run_program(tmp_path, main)
    assert (code, out, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith(f"error: {message}")


def test_ctrl_c_ends_a_program_quietly(tmp_path):
    code, _, errors = run_program(tmp_path, "raise KeyboardInterrupt")
    assert (code, errors) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed_in_any_locale(tmp_path, encoding):
    main = "print(chr(0x65e5), os.fsdecode(bytes([255])))"
    code, out, errors = run_program(tmp_path, main, PYTHONIOENCODING=encoding, LC_ALL="C")
    first = "\u65e5" if encoding == "utf-8" else "\\u65e5"
    assert (code, out, errors) == (0, f"{first} \\udcff\n", "")


def test_names_that_no_file_can_hold_are_refused(call):
    line = "error: --run_dir='a\\udcff': is no text in the encoding "
    assert call("--run_dir=a\udcff")[2].startswith(line)
    assert call("--run_dir=a\0")[2] == "error: --run_dir='a\\x00': must not hold a zero byte\n"


def test_old_flags_name_the_new_ones(call):
    renamed = {"lora": "it is now --finetune=lora"}
    for argument in ("--lora", "--nolora", "--lora=3"):
        status, _, error = call(argument, renamed=renamed)
        assert (status, error.endswith("; it is now --finetune=lora\n")) == (2, True)


def test_a_flag_of_any_length_is_one_line(call):
    status, _, error = call(f"--{'x' * 5000}=1")
    assert (status, error) == (2, f"error: unknown flag --{'x' * 38}...; --help lists the flags\n")


def test_the_home_of_nobody_is_one_line(call):
    status, _, error = call(main=lambda: pathlib.Path("~nobody_here/x").expanduser() and None)
    assert status == 2
    assert error.startswith("error: a path begins with ~ ")
