"""The ten best distinct programs of a run and their folder."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from etpo_jax.runs import top_programs
from etpo_jax.runs.best import Best
from etpo_jax.runs.top_programs import SIZE, TopPrograms


def _best(reward: float, env_step: int, program: str | None = None) -> Best:
    program = f"x = {env_step}\n" if program is None else program
    return Best(reward, (reward,), env_step, "balance_scale", 0, program, program)


def test_the_ten_best_are_kept_in_order() -> None:
    top = TopPrograms()
    rewards = [0.5 + (7 * step % 25) / 100 for step in range(25)]
    for step, reward in enumerate(rewards):
        top.note(_best(reward, step))
        assert top.ranked[0].reward == max(rewards[: step + 1])
    assert [best.reward for best in top.ranked] == sorted(rewards)[: -SIZE - 1 : -1]


def test_of_equal_rewards_the_earlier_is_the_better() -> None:
    top = TopPrograms()
    for step in range(2 * SIZE):
        top.note(_best(0.5, step))
    assert [best.env_step for best in top.ranked] == list(range(SIZE))


@pytest.mark.parametrize(
    "other", ["y=f( 1 )\nreturn_ = y", "# Better.\ny = f(1)\n\n\nreturn_ = y  # yes\n"]
)
def test_layout_makes_no_other_program(other: str) -> None:
    top = TopPrograms()
    top.note(_best(0.5, 1, "y = f(1)\nreturn_ = y\n"))
    top.note(_best(0.5, 2, other))
    assert [best.env_step for best in top.ranked] == [1]
    top.note(_best(0.6, 3, other))  # a task of one's own may reward the same action otherwise
    assert [best.env_step for best in top.ranked] == [3]
    top.note(_best(0.5, 4, "y = f(2)\nreturn_ = y\n"))
    assert [best.env_step for best in top.ranked] == [3, 4]


def test_actions_that_are_no_programs_are_told_apart_by_their_words() -> None:
    top = TopPrograms()
    for step, text in enumerate(["Lima, I think", "Lima,  I think\n", "Quito (", "\x00"]):
        top.note(_best(0.5, step, text))
    assert [best.env_step for best in top.ranked] == [0, 2, 3]


def test_the_folder_holds_these_programs_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "top_programs"
    top_programs.write(folder, (), is_script=False)
    assert not folder.exists()
    first, second = _best(0.75, 3), _best(-0.25, 1)
    top_programs.write(folder, [second], is_script=False)
    (folder / "notes.py").write_text("of the user\n")
    top_programs.write(folder, [first, second], is_script=False)
    assert set(os.listdir(folder)) == {*("01_0.7500.py", "02_-0.2500.py", "index.json", "notes.py")}
    assert (folder / "01_0.7500.py").read_text() == first.code()
    rows = json.loads((folder / "index.json").read_text())["programs"]
    assert [row["file"] for row in rows] == ["01_0.7500.py", "02_-0.2500.py"]
    expected = dataclasses.asdict(first) | {"split_scores": [0.75]}
    del expected["program"]
    assert rows[0] == {"file": "01_0.7500.py", **expected}
    top_programs.write(folder, (), is_script=False)
    assert os.listdir(folder) == ["notes.py"]
