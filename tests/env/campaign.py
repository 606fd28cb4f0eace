"""Sends all attacks through executors and reports, as JSON, what became of them and of the host.

A program, so that it can run as another user and be watched from outside. Standard input: the
keyword arguments of the executors, except for the limits.
"""

import ctypes
import json
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from env.datasets import load_dataset
from env.executor import CodeExecutor, Limits
from env.sandbox import seccomp
from tests.env import frame_attacks
from tests.env.attacks import ATTACKS, BENIGN_BODY, MEMORY, Attack

_PR_SET_CHILD_SUBREAPER = 36
SECRET = "secret, and it shall stay as it is"
LIMITS = Limits(timeout_s=60.0)
"""Limits of attacks that end by themselves, however busy the machine is."""
SLOW_LIMITS = Limits(timeout_s=4.0, cpu_s=1)
"""Limits of attacks that only a limit ends, and of the programs beside them."""


class Noise(NamedTuple):
    """A table without anything to learn."""

    features: np.ndarray
    labels: np.ndarray


class Listeners:
    """Sockets of all kinds that somebody might reach, and how often somebody has."""

    def __init__(self, folder: Path):
        self.num_visits = 0
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.addresses: dict[str, Any] = {
            "TCP": tcp.getsockname()[1],
            "UDP": udp.getsockname()[1],
            "UNIX": str(folder / "listener"),
            "ABSTRACT": f"\0etpo-{os.getpid()}",
        }
        self._watch(tcp)
        self._watch(udp)
        for kind in ("UNIX", "ABSTRACT"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.addresses[kind])
            listener.listen()
            self._watch(listener)
        os.chmod(self.addresses["UNIX"], 0o777)

    def _watch(self, listener: socket.socket) -> None:
        def wait() -> None:
            while True:
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(1)
                self.num_visits += 1

        threading.Thread(target=wait, daemon=True).start()


def _run(executor: CodeExecutor, values: dict[str, Any], *, is_slow: bool) -> dict[str, Any]:
    """Runs attacks with a benign body after each; their outcomes by name."""
    attacks = [attack for attack in ATTACKS if attack.is_slow == is_slow]
    bodies = [body for attack in attacks for body in (attack.body(values), BENIGN_BODY)]
    results = executor.run(bodies)
    return {
        attack.name: {
            "error": hostile.error,
            "reward": hostile.reward,
            "wall_s": hostile.wall_s,
            "benign": benign.split_scores,
        }
        for attack, hostile, benign in zip(attacks, results[::2], results[1::2], strict=True)
    }


def main() -> None:
    """Runs the campaign."""
    options = json.load(sys.stdin)
    # Whatever outlives its parent becomes a child of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["ETPO_SECRET"] = "etpo-secret"
    dataset = load_dataset("balance_scale")
    rng = np.random.default_rng(0)
    noise = Noise(rng.normal(size=(400, 3)), rng.integers(2, size=400))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        canary = Path(folder, "canary")
        canary.mkdir()
        canary.chmod(0o777)
        secret = canary / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o666)
        listeners = Listeners(Path(folder))
        allowed = seccomp.numbers(seccomp.cell_rules(0), platform.machine())
        values = {
            "CANARY": str(canary),
            "FOLDERS": [str(canary), "/tmp", "/var/tmp", "/dev/shm", "."],
            "PID": os.getpid(),
            "ROWS": len(dataset.labels) - len(dataset.labels) // 2,
            "ALLOWED": sorted(allowed.values()),
            "CLONE": allowed["clone"],
            **listeners.addresses,
        }
        with CodeExecutor(dataset, **options, limits=LIMITS) as executor:
            (alone,) = executor.run([BENIGN_BODY])
            outcomes = _run(executor, values, is_slow=False)
            isolation = executor.isolation
        with CodeExecutor(dataset, **options, limits=SLOW_LIMITS) as executor:
            executor.run([BENIGN_BODY])  # the first one waits for the libraries
            outcomes |= _run(executor, values, is_slow=True)
        memory = Attack("memory", MEMORY).body(values)
        with CodeExecutor(noise, **{**options, "limits": LIMITS, "num_splits": 5}) as executor:
            from_memory = [result.reward for result in executor.run([memory] * 3)]
        on_frames = [*[frame_attacks.ORDERS["memory"]] * 3, *frame_attacks.BREACHES.values()]
        table = frame_attacks.noise()
        with CodeExecutor(table, **{**options, "limits": LIMITS, "num_splits": 5}) as executor:
            results = executor.run(on_frames)
            from_frames = [{"reward": done.reward, "error": done.error} for done in results]
        report = {
            "isolation": isolation,
            "benign": alone.split_scores,
            "outcomes": outcomes,
            "from_memory": from_memory,
            "from_frames": from_frames,
            "num_visits": listeners.num_visits,
            "files": sorted(path.name for path in canary.iterdir()),
            "secret": secret.read_text(),
            "has_processes_left": _has_children(),
        }
    json.dump(report, sys.stdout)


def _has_children() -> bool:
    """True if a child process is left; one that is about to end gets a moment."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return False
    return True


if __name__ == "__main__":
    main()
