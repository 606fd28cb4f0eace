"""The picture and the page of a run show what its files say."""

import dataclasses
import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from env.base import UsageError
from etpo_jax.runs import report
from etpo_jax.runs.directory import Best, RunDirectory

_ACTION = "model = '<script>alert(1)</script>'"
_ERRORS = ("ValueError: <b>bad</b>", "timeout: 10 s", "")


def _make_run(path: Path, num_updates: int) -> None:
    config = {"algorithm": "etpo", "dataset": "toy<i>", "seed": 3, "num_env_steps": 100}
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        for update in range(1, num_updates + 1):
            errors = [_ERRORS[i % 3] for i in range(4)]
            run.append_episodes(
                [
                    {
                        "env_step": 4 * update - 3 + i,
                        "reward": -1.0 if error else update / 100,
                        "error": error,
                        "action": f"{_ACTION} # {update}",
                    }
                    for i, error in enumerate(errors)
                ]
            )
            run.append_metrics(
                {
                    "update": update,
                    "env_step": 4 * update,
                    "reward_mean": -0.5 + update / 100,
                    "reward_best": update / 100,
                    "runnable_rate": 0.25,
                    "kl_to_reference": float("nan") if update == 1 else 0.1 * update,
                    "entropy": None,
                }
            )
        score = num_updates / 100
        program = f"def build_model():\n    {_ACTION}\n"
        best = Best(score, (score, score), 4 * num_updates, "toy", 3, _ACTION, program)
        run.write_best(best)
        second = dataclasses.replace(best, reward=score / 2, env_step=7, action="model = 2")
        run.write_top_programs([best, second])


class _Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects them and the text."""

    _VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)


def test_the_curve_is_a_picture_with_four_panels_of_colour(tmp_path: Path) -> None:
    _make_run(tmp_path, 20)
    path = report.write_curve(tmp_path)
    assert path == tmp_path / "curve.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert width >= 1200

    def has(colour: str, rows: slice, columns: slice) -> bool:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return bool((np.abs(pixels[rows, columns] - wanted).max(-1) <= 2).any())

    top, bottom = slice(0, height // 2), slice(height // 2, height)
    left, right = slice(0, width // 2), slice(width // 2, width)
    assert has("#0072B2", top, left)  # mean reward
    assert has("#E69F00", top, left)  # best reward
    assert has("#009E73", top, right)  # runnable
    assert has("#D55E00", bottom, left)  # KL, though it starts with NaN
    assert not has("#0072B2", bottom, right)


@pytest.mark.parametrize("num_updates", [1, 2])
def test_short_runs_have_a_curve_and_a_page(tmp_path: Path, num_updates: int) -> None:
    _make_run(tmp_path, num_updates)
    assert report.write_curve(tmp_path).stat().st_size > 10_000
    _Page(report.write_report(tmp_path).read_text())


def test_a_run_without_updates_has_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        report.write_curve(tmp_path)
    RunDirectory.open(tmp_path, {}, may_differ=frozenset(), overwrite=False).close()
    for write in (report.write_curve, report.write_report):
        with pytest.raises(UsageError, match="no update yet"):
            write(tmp_path)


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    _make_run(tmp_path, 20)
    page = _Page(report.write_report(tmp_path).read_text())
    assert page.open == []
    # Reward, runnable, KL and errors; no entropy was measured.
    assert page.tags.count("svg") == 4
    text = re.sub(r"\s+", " ", "".join(page.words))
    for part in (
        "etpo on toy<i>, seed 3",
        "80 environment steps, not finished",
        "Best reward0.2000at environment step 80",
        "Mean reward",
        "Programs that run25%",
        "mean over 3 batches",
        "ValueError",
        "timeout",
        _ACTION,
        "The 2 best programs",
        "10.2000800.2000 0.2000def build_model",
        "20.100070.2000 0.2000model = 2",
        "How to go on",
        "etpo evaluate --run_dir=",
        "--num_env_steps=200",
        "--flagfile=",
        "--run_dir=NEW_FOLDER",
        "num_env_steps100",
        "git_commit",
    ):
        assert part in text
    assert "Entropy" not in text
    readouts = dict(page.attributes)["data-readouts"]
    assert readouts is not None
    assert "ValueError 50%, timeout 25%" in readouts


def test_the_page_needs_no_network_and_runs_nothing_of_the_programs(tmp_path: Path) -> None:
    _make_run(tmp_path, 20)
    text = report.write_report(tmp_path).read_text()
    page = _Page(text)
    assert page.tags.count("script") == 1
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onerror"}
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", text)
    links = [value or "" for name, value in page.attributes if name == "xlink:href"]
    assert all(link.startswith("#") for link in links)


def test_every_metric_of_the_log_is_drawn(tmp_path: Path) -> None:
    _make_run(tmp_path, 3)
    config = {"algorithm": "etpo", "dataset": "toy<i>", "seed": 3, "num_env_steps": 100}
    with RunDirectory.open(tmp_path, config, may_differ=frozenset(), overwrite=False) as run:
        values = {"critic_loss": 0.5, "mine<b>": 7, "words": "text", "lost": float("nan")}
        run.append_metrics({"update": 4, "env_step": 16, **values})
    page = _Page(report.write_report(tmp_path).read_text())
    text = re.sub(r"\s+", " ", "".join(page.words))
    assert "All other metrics Critic loss" in text
    assert "mine<b>" in text
    assert not {"words", "lost"} & set(text.split())
    readouts = [value for name, value in page.attributes if name == "data-readouts"]
    assert any("16: batch 7" in (value or "") for value in readouts)
