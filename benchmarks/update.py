"""CPU time of an update step beside the same mathematics in PyTorch: `benchmarks.update`.

The jitted step of ETPO against `benchmarks.update_torch`: same weights, same batch,
float32, one process and one core for both. First both take steps whose metrics and gradients must
agree; then they take turns, so that a busy machine slows both alike. Needs torch, which nothing
else here does.
"""

import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from benchmarks import update_parity
from benchmarks.random_model import decoder_config
from env import command_line
from models.transformer import REMAT

_SIZES = {
    # name: vocabulary, width, MLP, layers, heads, key heads, size of a head
    "tiny": (1024, 64, 176, 2, 4, 2, 16),
    "medium": (2048, 256, 688, 4, 8, 4, 32),
}
_TRANSITIONS = 16
_SHAPES = ((128, 64), (64, 32))
"""Tokens of prompt and action: the demonstration's bucket, and a short one."""
_ROUND_S = 0.5

_SIZE = flags.DEFINE_enum("size", "tiny", list(_SIZES), "Shape of the model; tiny: the stand-in's.")
_MODE = flags.DEFINE_enum("mode", "retrace", list(update_parity.MODES), "Critic loss.")
_REMAT = flags.DEFINE_enum("remat", "full", REMAT, "Of etpo_jax; torch keeps everything.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Measured rounds of each program.", lower_bound=5)
_OUTPUT = flags.DEFINE_string("output", None, "File for the table as well.")

Program = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step in each round."""

    cpu: list[float]
    wall: list[float]


def main() -> None:
    update_torch = update_parity.import_peer()
    update_torch.torch.set_num_threads(1)
    # Before anything starts XLA's threads, which inherit it.
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    jax.config.update("jax_platforms", "cpu")
    torch_version = update_torch.torch.__version__
    lines = [
        f"One update of {_TRANSITIONS} transitions, {_SIZE.value} model, critic loss {_MODE.value} "
        f"with {update_parity.MODES[_MODE.value]} Q, float32, remat {_REMAT.value} in "
        f"etpo_jax, one core of {os.cpu_count()}, load average {os.getloadavg()[0]:.1f}; jax "
        f"{jax.__version__}, torch {torch_version}; medians of {_REPEATS.value} rounds, ranges of "
        "their ratios.",
        "",
        "| prompt + action | etpo_jax CPU ms | torch CPU ms | torch / etpo_jax | etpo_jax wall ms |"
        " torch wall ms | torch / etpo_jax | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for prompt, action in _SHAPES:
        problem = update_parity.make_problem(
            decoder_config(_SIZES[_SIZE.value], 1024),
            _MODE.value,
            _TRANSITIONS,
            prompt,
            action,
            _REMAT.value,
        )
        ours = update_parity.Ours(problem)
        theirs = update_parity.make_theirs(update_torch, problem)
        difference = update_parity.largest_difference(ours, theirs)
        times = _measure([ours, theirs], _REPEATS.value)
        lines.append(_row(f"{prompt} + {action}", *times, difference))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text)


def _measure(programs: list[Program], repeats: int) -> list[Times]:
    """Rounds in which each program runs for a while, first one and then the other in front."""
    counts = []
    for program in programs:
        start = time.perf_counter()
        program()
        counts.append(max(1, round(_ROUND_S / (time.perf_counter() - start))))
    times = [Times([], []) for _ in programs]
    for index in range(repeats):
        order = range(len(programs)) if index % 2 else reversed(range(len(programs)))
        for position in order:
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for _ in range(counts[position]):
                programs[position]()
            wall_s, cpu_s = time.perf_counter() - wall_start, time.process_time() - cpu_start
            times[position].wall.append(wall_s / counts[position])
            times[position].cpu.append(cpu_s / counts[position])
    return times


def _row(name: str, ours: Times, theirs: Times, difference: float) -> str:
    cells = [name]
    for clock in ("cpu", "wall"):
        our_s, their_s = getattr(ours, clock), getattr(theirs, clock)
        ratios = [b / a for a, b in zip(our_s, their_s, strict=True)]
        our_ms, their_ms = 1e3 * statistics.median(our_s), 1e3 * statistics.median(their_s)
        cells += [f"{our_ms:.1f}", f"{their_ms:.1f}"]
        cells.append(f"{their_ms / our_ms:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join([*cells, f'{difference:.0e}'])} |"


if __name__ == "__main__":
    command_line.run(main)
