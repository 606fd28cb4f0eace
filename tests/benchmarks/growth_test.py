"""What counts as grown; `python -m benchmarks.growth` measures a long run."""

import dataclasses

import pytest

from benchmarks import growth, soak

EARLY = growth.Figures(own_bytes=10**9, descriptors=30, threads=8, processes=2, files=20)


@pytest.mark.parametrize("name", ["descriptors", "threads", "processes", "files"])
def test_one_more_of_anything_has_grown(name):
    before = getattr(EARLY, name)
    late = dataclasses.replace(EARLY, **{name: before + 1})
    assert soak.grown(EARLY, late) == [f"{name} from {before} to {before + 1}"]
    assert soak.grown(late, EARLY) == []


def test_memory_may_vary_by_a_few_megabytes():
    assert soak.grown(EARLY, dataclasses.replace(EARLY, own_bytes=10**9 + 2**23)) == []
    (problem,) = soak.grown(EARLY, dataclasses.replace(EARLY, own_bytes=10**9 + 2**25))
    assert problem.startswith("own_bytes from ")


def test_a_run_is_measured_at_intervals(tmp_path):
    for name in ("metrics.jsonl", "episodes.jsonl", "trackers/sample.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    watch = growth.Watch(tmp_path, updates=2 * growth.REPORTS)
    for update in (1, 2, 3):
        watch({"update": update})
    (figures,) = watch.history
    assert figures.files == 2  # files of trackers are counted by nobody
    assert figures.own_bytes > 10**7
    assert watch.lines[-1].startswith("| 2 | ")


def test_the_highest_of_each_figure_is_the_measure():
    other = dataclasses.replace(EARLY, files=25, threads=7)
    assert growth.highest([EARLY, other]) == dataclasses.replace(EARLY, files=25)
