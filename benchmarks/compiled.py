"""Times to expect on a card, by arithmetic over programs that were compiled without one.

    etpo plan --flagfile=codellama_7b_h200.flags --aot=h200 --aot_folder=texts
    python -m benchmarks.compiled --programs=texts/generation.hlo.gz,texts/gradient_step.hlo.gz

Of a program with a decoding loop the time of one token is computed, of another one that of the
whole program. Every kernel takes as long as its traffic or its matrix products do at the given
rates, plus the cost of its start; a loop inside whose turns depend on data costs a trip to the host
per turn. The floor is what no kernel can save: reading weights and caches once, or the products.
Nothing is measured, tiles are not tuned, and kernels that stay below the given rates are not
foreseen, so that a card takes at least the expected time.
"""

import dataclasses
import gzip
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.devices import compiled_figures, compiled_program
from etpo_jax.devices.compiled_program import Program

_flags = flags.FlagValues()
_PROGRAMS = flags.DEFINE_list(
    "programs",
    None,
    "Files with texts of compiled programs, as plan --aot_folder keeps them.",
    flag_values=_flags,
)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 4.3, "TB/s of the device's memory when copying.", flag_values=_flags
)
_PEAK = flags.DEFINE_float(
    "peak", 790.0, "TFLOP/s of large matrix products in 16 bits.", flag_values=_flags
)
_START = flags.DEFINE_float(
    "start_us", 2.5, "Microseconds that the start of a kernel costs.", flag_values=_flags
)
_TRIP = flags.DEFINE_float(
    "trip_us", 20.0, "Microseconds that a trip to the host costs.", flag_values=_flags
)
_TURNS = flags.DEFINE_integer(
    "turns", 20, "Turns assumed of a loop that depends on data.", flag_values=_flags
)
_SHARES = (0.8, 0.7, 0.6)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Highest rates of a device and costs of a start and of a trip to the host, in SI units.

    Attributes:
      bandwidth: bytes per second.
      peak: floating point operations of products per second.
      start: seconds that the start of a kernel costs.
      trip: seconds that a trip to the host costs.
      turns: turns of a loop whose turns depend on data.
    """

    bandwidth: float
    peak: float
    start: float
    trip: float
    turns: int


@dataclasses.dataclass(frozen=True)
class Expected:
    """Seconds of one token or one gradient step.

    Attributes:
      title: "a token" or "the program".
      floor: reading weights and caches once, or the products at their peak.
      products: kernels with matrix products.
      others: all other kernels.
      starts: starts of kernels.
      trips: trips to the host.
      kernels: number of kernels.
      traffic: bytes that kernels read and write.
      flops: operations of products.

    Numbers of a token are means over the loops that generation goes through.
    """

    title: str
    floor: float
    products: float
    others: float
    starts: float
    trips: float
    kernels: float
    traffic: float
    flops: float

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.products + self.others + self.starts + self.trips


def expected(program: Program, rates: Rates) -> Expected:
    """The time of a token where there is a decoding loop, else that of the whole program.

    Where generation goes through several loops, each of which reads more of the cache, it is their
    mean.
    """
    if all(program.trip_count(loop) for loop in program.loops()):
        time = _expected(program, program.entry, rates)
        return dataclasses.replace(time, floor=time.flops / rates.peak)
    times = []
    for loop in compiled_figures.decode_loops(program):
        body = loop.called("body")
        # Where tokens are chosen in rounds of a known number, the host is asked once a round.
        trips = rates.trip / (program.trip_count(loop) or 1)
        time = _expected(program, body, rates)
        floor = compiled_figures.carried_bytes(program, body) / rates.bandwidth
        times.append(
            dataclasses.replace(time, title="a token", floor=floor, trips=time.trips + trips)
        )
    numbers = {
        field.name: sum(getattr(time, field.name) for time in times) / len(times)
        for field in dataclasses.fields(Expected)
        if field.name != "title"
    }
    return Expected("a token", **numbers)


def _expected(program: Program, computation: str, rates: Rates) -> Expected:
    """Expected time of a computation, without a floor to compare it with."""
    works = list(compiled_figures.work(program, computation))
    products = others = 0.0
    for one in works:
        seconds = max((one.read + one.written) / rates.bandwidth, one.flops / rates.peak)
        products += seconds * one.times * bool(one.flops)
        others += seconds * one.times * (not one.flops)
    seen = compiled_figures.figures(program, computation)
    return Expected(
        title="the program",
        floor=0.0,
        products=products,
        others=others,
        starts=seen.kernels * rates.start,
        trips=seen.data_dependent_loops * rates.turns * rates.trip,
        kernels=seen.kernels,
        traffic=sum((one.read + one.written) * one.times for one in works),
        flops=sum(one.flops * one.times for one in works),
    )


def lines(name: str, time: Expected) -> Iterator[str]:
    """The parts of the expected time, and what each share of the floor leaves for them."""

    def ms(seconds: float) -> str:
        return f"{1e3 * seconds:,.2f} ms"

    yield f"{name}, {time.title}: {ms(time.total)}, {time.floor / time.total:.0%} of the floor"
    yield (
        f"  floor {ms(time.floor)}; {time.kernels:,.0f} kernels, {time.traffic / 1e9:,.1f} GB of "
        f"traffic, {time.flops / 1e12:,.1f} TFLOP"
    )
    yield (
        f"  kernels with products {ms(time.products)}, other kernels {ms(time.others)}, starts "
        f"{ms(time.starts)}, trips to the host {ms(time.trips)}"
    )
    for share in _SHARES:
        spare = time.floor / share - time.total
        verdict = f"{ms(spare)} to spare" if spare >= 0 else f"{ms(-spare)} must go"
        yield f"  {share:.0%} of the floor is {ms(time.floor / share)}: {verdict}"


def read(path: Path) -> Program:
    """Reads a program's text, compressed or not.

    Raises:
      UsageError: it cannot be read, or is no text of a compiled program.
    """
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        return compiled_program.parse(text.decode())
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error


def main() -> None:
    """Prints the expected times of the programs.

    Raises:
      UsageError: no file is named, or one cannot be read.
    """
    if not _PROGRAMS.value:
        raise UsageError("--programs: name files that plan --aot_folder has written")
    rates = Rates(
        1e12 * _BANDWIDTH.value,
        1e12 * _PEAK.value,
        1e-6 * _START.value,
        1e-6 * _TRIP.value,
        _TURNS.value,
    )
    for path in _PROGRAMS.value:
        print("\n".join(lines(path, expected(read(Path(path)), rates))))


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
