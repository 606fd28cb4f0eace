"""What the compiler said of a run's programs, as lines of text beside the plan's estimate."""

from collections.abc import Iterator, Sequence

from etpo_jax.devices.accelerators import gib, mib
from etpo_jax.devices.aot import Compiled
from etpo_jax.devices.compiled_figures import Figures
from etpo_jax.devices.memory import SAMPLED, Memory, total

_COLUMNS = ("arguments", "temporaries", "estimated", "results", "at once", "host", "seconds")


def lines(made: Sequence[Compiled], needed: Memory, limit: int) -> Iterator[str]:
    """One row of memory for each program and what it executes below.

    "Estimated" is the plan's figure for the temporaries. "At once" is all memory in use while the
    program runs: what always stays on the device, and the program's own.

    Args:
      made: the compiled programs.
      needed: the plan's estimate for the same run.
      limit: bytes that programs may fill on one device.
    """
    yield f"  {'program':14}" + "".join(f"{name:>13}" for name in _COLUMNS)
    for one in made:
        if one.error:
            yield f"  {one.program:14}  {one.error}"
            continue
        planned = estimated(one.program, needed)
        sizes = (one.arguments, one.temporaries, planned, one.results, at_once(one, needed))
        cells = "".join(f"{gib(size):>13}" for size in (*sizes, one.host_bytes))
        short = at_once(one, needed) - limit
        yield f"  {one.program:14}{cells}{one.compile_s:>13.0f}" + (
            f"  does not fit, {gib(short)} short" * (short > 0)
        )
    for one in made:
        if not one.error:
            yield from _executed(one)


def at_once(one: Compiled, needed: Memory) -> int:
    """Bytes in use on a device while the program runs."""
    beside = total(needed.resident)
    if one.program == "generation":
        # Its arguments are the copy of the weights that it reads, and perhaps the reference's,
        # which stays.
        beside += sum(item.num_bytes for item in needed.generation if item.name == SAMPLED)
        return beside + one.temporaries + one.results
    beside = sum(item.num_bytes for item in needed.gradient_step if item.name == SAMPLED)
    return beside + one.total


def fits(made: Sequence[Compiled], needed: Memory, limit: int) -> bool:
    """True if every program was compiled and leaves no memory short."""
    return all(not one.error and at_once(one, needed) <= limit for one in made)


def estimated(program: str, needed: Memory) -> int:
    """Bytes of a program's temporaries by the plan."""
    items = needed.generation if program == "generation" else needed.gradient_step
    return sum(item.num_bytes for item in items if item.name != SAMPLED)


def _executed(one: Compiled) -> Iterator[str]:
    seen = one.figures
    if one.program == "generation":
        yield (
            f"  each token of generation: {seen.kernels:,} kernels, {seen.kernels_per_layer} in "
            f"each layer; {_loops(seen)}"
        )
    else:
        yield f"  a gradient step: {seen.kernels:,} kernels; {_loops(seen)}"
    yield (
        f"    copies: {seen.copies:,} of {mib(seen.copied_bytes)}, the largest "
        f"{mib(seen.largest_copy)}"
    )
    moved = [f"{count:,} {kind} of {mib(size)}" for kind, (count, size) in seen.collectives.items()]
    yield f"    collectives: {', '.join(moved) or 'none'}"
    called = [f"{count:,} {target}" for target, count in seen.custom_calls.items()]
    yield f"    custom calls: {', '.join(called) or 'none'}"


def _loops(seen: Figures) -> str:
    count = seen.data_dependent_loops
    return f"{count or 'no'} data-dependent loop{'s' * (count != 1)} inside"
