"""The judge of faults: what it calls equal, lost and wrong. `make chaos` makes real faults."""

import dataclasses
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import chaos, chaos_faults, chaos_runs
from etpo_jax.runs import files

ROW = {"update": 1, "reward_mean": 0.5, "update_s": 1.0}


def write(path, *rows, episodes=()):
    path.mkdir()
    files.append_rows(path / "metrics.jsonl", rows)
    files.append_rows(path / "episodes.jsonl", episodes)
    return path


def test_logs_are_compared_without_times_as_far_as_they_go(tmp_path):
    other = {"update": 2, "reward_mean": 0.25}
    reference = write(tmp_path / "reference", ROW, other)
    prefix = write(tmp_path / "prefix", ROW | {"update_s": 9.0})
    assert chaos_runs.differences(prefix, reference, is_whole=False) == []
    twice = write(tmp_path / "twice", ROW, ROW)
    (found,) = chaos_runs.differences(twice, reference, is_whole=False)
    assert found == "metrics.jsonl differs from row 2 on"
    longer = write(tmp_path / "longer", ROW, other, other)
    (found,) = chaos_runs.differences(longer, reference, is_whole=False)
    assert found == "metrics.jsonl differs from row 3 on"
    assert chaos_runs.num_logged(longer) == 3
    assert chaos_runs.num_kept(longer) == 0


def test_one_bit_makes_arrays_unequal():
    tree = {"a": np.array([0.0, 1.0], np.float32)}
    assert chaos_runs._are_equal(tree, {"a": np.array([0.0, 1.0], np.float32)})
    assert not chaos_runs._are_equal(tree, {"a": np.array([-0.0, 1.0], np.float32)})
    assert not chaos_runs._are_equal(tree, {"a": np.array([0.0, 1.0], np.float64)})


def test_instants_are_seeded_and_several_hosts_are_hit_once_they_know_each_other():
    one, two = chaos_faults.KINDS[0], chaos_faults.KINDS[-1]
    for kind in (one, two):
        instants = [
            [chaos._instant(done, kind, rng) for done in (0, 5, 11) for _ in range(20)]
            for rng in (random.Random(3), random.Random(3))
        ]
        assert instants[0] == instants[1]
        updates = [number for number, _ in instants[0]]
        assert max(updates) <= chaos_runs.NUM_UPDATES
        assert (min(updates) == 0) == (kind is one)


SLEEPER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.fixture
def host(tmp_path):
    """A process with a child, as a host of a run."""
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, ready], start_new_session=True)
    host = chaos_runs.Host(process, tmp_path / "out", tmp_path / "err")
    while not ready.exists():
        time.sleep(0.01)
    yield host
    chaos_runs.kill_all([host])
    process.wait()


def test_the_whole_group_is_killed_and_orphans_are_noticed(host, monkeypatch):
    monkeypatch.setattr(chaos_runs, "_ORPHANS_S", 0.2)
    (child,) = host.below()
    host.process.kill()
    assert host.wait() == -9
    assert host.orphans() == [child]
    child.kill()
    child.wait(10)
    assert host.orphans() == []


def test_complaints_name_what_a_process_should_not_have_done(host):
    chaos_runs.kill_all([host])
    host.wait()
    host.output.write_text("")
    host.errors.write_text("Traceback\nOSError: full\n")
    kind = next(kind for kind in chaos_faults.KINDS if kind.name == "disk full")
    assert chaos._complaints(kind, [host], [1], 0.0) == [
        "exit code 1",
        "says 'Traceback'",
        "ends with 'OSError: full'",
    ]
    host.errors.write_text("error: no space left on the disk\n")
    assert chaos._complaints(kind, [host], [2], 0.0) == []


def test_the_table_counts_by_kind():
    good = chaos.Outcome("SIGTERM", "", (143,), 0, 1.0, False, ())
    bad = chaos.Outcome("SIGTERM", "", (1,), 2, 3.0, False, ("2 updates lost",))
    table = chaos._table([dataclasses.asdict(outcome) for outcome in (good, bad)])
    assert "| SIGTERM | 2 | 1 | 2 | 1, 143 | 3.0 |" in table
    assert "| all | 0 | 0 | 0 |" in chaos._table([])


def test_every_second_round_leaves_several_hosts_out():
    kinds = chaos._in_turn(chaos_faults.KINDS, 48)
    assert set(kinds[:9]) == set(chaos_faults.KINDS)
    assert sum(kind.num_hosts > 1 for kind in kinds) == 6
