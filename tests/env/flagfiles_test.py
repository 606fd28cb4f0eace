"""Flagfiles: what their lines become, where names in them lead, and what is refused."""

import pytest

from env.base import UsageError
from env.flagfiles import expand_flagfiles


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a flagfile that names another one in a folder below."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "run.flags").write_text("--a=1\n--flagfile=below/more.flags\n--b=2\n")
    (tmp_path / "below" / "more.flags").write_text("--flagfile=last.flags\n--c=3\n")
    (tmp_path / "below" / "last.flags").write_text("--d=4\n")
    return tmp_path


NESTED = ["--a=1", "--d=4", "--c=3", "--b=2"]


@pytest.mark.parametrize(
    "arguments",
    [["--flagfile=run.flags"], ["--flagfile", "run.flags"], ["-flagfile=run.flags"]],
    ids=" ".join,
)
def test_lines_stand_where_the_flagfile_is_named(folder, arguments):
    assert expand_flagfiles(["--x", *arguments, "--y"]) == ["--x", *NESTED, "--y"]


def test_nested_names_are_relative_to_the_file_that_holds_them(folder, monkeypatch):
    monkeypatch.chdir("/")
    assert expand_flagfiles([f"--flagfile={folder}/run.flags"]) == NESTED


def test_comments_and_empty_lines_are_left_out_and_values_kept_as_they_are(folder):
    text = '# one\n// two\n\n  --a="x # y" \n   # three\n--flagfile below/last.flags\n--b= c\n'
    (folder / "run.flags").write_text(text)
    assert expand_flagfiles(["--flagfile=run.flags"]) == ['--a="x # y"', "--d=4", "--b= c"]


def test_nothing_behind_two_dashes_is_expanded(folder):
    assert expand_flagfiles(["--", "--flagfile=run.flags"]) == ["--", "--flagfile=run.flags"]


def test_an_empty_name_is_no_flagfile(folder):
    assert expand_flagfiles(["--flagfile=", "--a=1"]) == ["--a=1"]


@pytest.mark.parametrize("name", ["last.flags", "launch/last.flags", "~/last.flags"])
def test_a_shipped_flagfile_is_found_from_anywhere(folder, monkeypatch, name):
    monkeypatch.setenv("HOME", str(folder / "below"))
    found = expand_flagfiles([f"--flagfile={name}"], [folder / "nowhere", folder / "below"])
    assert found == ["--d=4"]


def test_the_users_own_file_is_preferred_to_a_shipped_one(folder):
    (folder / "last.flags").write_text("--own\n")
    assert expand_flagfiles(["--flagfile=last.flags"], [folder / "below"]) == ["--own"]


def test_a_users_flagfile_may_name_a_shipped_one(folder):
    (folder / "own.flags").write_text("--flagfile=launch/last.flags\n")
    assert expand_flagfiles(["--flagfile=own.flags"], [folder / "below"]) == ["--d=4"]


def test_a_missing_flagfile_says_where_it_was_searched_and_what_is_there(folder):
    below = folder / "below"
    searched = f"no such file in {folder} and {below}; the shipped ones are last.flags, more.flags"
    with pytest.raises(UsageError, match=searched):
        expand_flagfiles(["--flagfile=none.flags"], [below])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--flagfile=x.flags", "more.flags: --flagfile=x.flags: there is no such file"),
        ("--flagfile=../run.flags", "more.flags: --flagfile=../run.flags: leads back to itself"),
        ("--flagfile", "more.flags: --flagfile: needs the name of a file"),
        ("--flagfile=..", "more.flags: --flagfile=..: cannot be read"),
    ],
)
def test_what_is_refused_names_the_file_that_holds_it(folder, text, message):
    (folder / "below" / "more.flags").write_text(text)
    with pytest.raises(UsageError, match=rf"^below/{message}"):
        expand_flagfiles(["--flagfile=run.flags"])


def test_a_flagfile_that_is_no_text_is_refused(folder):
    (folder / "run.flags").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"^--flagfile=run\.flags: cannot be read"):
        expand_flagfiles(["--flagfile=run.flags"])


def test_a_file_may_be_named_twice_where_it_is_no_circle(folder):
    assert expand_flagfiles(["--flagfile=below/last.flags"] * 2) == ["--d=4", "--d=4"]
