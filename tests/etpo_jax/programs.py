"""Programs in processes of their own, forked from one that has imported what they need.

A third of a short program's time is imports. What a process does otherwise, it does here as well.
"""

import functools
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
# Compiled programs outlive the session, so that running the tests again is quick.
CACHE = ROOT / ".pytest_cache" / "compiled"
TIMEOUT_S = 600

_SERVER = """
import json, os, runpy, sys, warnings
from etpo_jax import build, loop, plan, trainer
from etpo_jax.acting import external
from etpo_jax.runs import report
warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
for request in sys.stdin:
    program, arguments, streams = json.loads(request)
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in zip((1, 2), streams):
            os.dup2(os.open(path, os.O_WRONLY), descriptor)
        sys.argv = [program, *arguments]
        sys.orig_argv = [sys.executable, "-m", program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment():
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(CACHE)}


@functools.cache
def _server():
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(*arguments, program="train"):
    """The completed process of `python -m etpo_jax.PROGRAM` with these arguments."""
    server, words = _server(), [f"etpo_jax.{program}", [str(text) for text in arguments]]
    with tempfile.TemporaryDirectory() as folder:
        streams = [pathlib.Path(folder) / name for name in ("out", "err")]
        for stream in streams:
            stream.touch()
        server.stdin.write(json.dumps([*words, [str(stream) for stream in streams]]) + "\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], TIMEOUT_S)
        assert ready, f"{words} did not end: {streams[0].read_text()}{streams[1].read_text()}"
        code = int(server.stdout.readline())
        texts = [stream.read_text() for stream in streams]
    return subprocess.CompletedProcess(words, code, *texts)


def close():
    """Ends the process that programs are forked from, if there is one."""
    if _server.cache_info().currsize:
        with _server() as server:
            server.stdin.close()
        _server.cache_clear()
