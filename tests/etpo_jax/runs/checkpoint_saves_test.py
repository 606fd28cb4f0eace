"""Checkpoints leave nothing behind in the process that writes them."""

import threading

import jax.numpy as jnp
import numpy as np
import psutil

from etpo_jax.runs.checkpoint import Checkpoints


def test_saves_keep_no_descriptor_and_no_thread(tmp_path):
    own, found = psutil.Process(), []
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for update in range(1, 7):
            state, replay = {"a": jnp.ones(3)}, {"b": np.ones(2, np.float32)}
            checkpoints.save(update, state, replay, {"count": update})
            if update % 3 == 0:
                checkpoints.wait()
                names = sorted(thread.name for thread in threading.enumerate())
                found.append((own.num_fds(), names))
        assert checkpoints.latest == 6
    assert found[0] == found[1]
