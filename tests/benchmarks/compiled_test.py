"""Expected times of compiled programs, by arithmetic that can be followed."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled
from benchmarks.compiled import Rates
from env.base import UsageError

TEXT = Path(__file__).parents[1] / "etpo_jax" / "devices" / "generation.hlo"
RATES = Rates(bandwidth=1e9, peak=1e12, start=1e-6, trip=1e-3, turns=10)


def test_a_token_takes_its_traffic_its_starts_and_its_trips():
    time = compiled.expected(compiled.read(TEXT), RATES)
    assert time.title == "a token"
    assert (time.kernels, time.starts) == (16, pytest.approx(16e-6))
    # Ten turns of the inner loop and the condition of the outer one.
    assert time.trips == pytest.approx(11e-3)
    # Two gathered rows, their ids and a kernel of 4 x 16 in float32; two rows of 16 are written.
    assert time.products == pytest.approx((32 + 8 + 256 + 128) / 1e9)
    assert time.flops == 2 * 2 * 16 * 4
    # What the turn reads of arrays that the loop carries: the same, the index of the slot, and the
    # array of 8 x 4 that is copied several times. The cache is only written.
    assert time.floor == pytest.approx((32 + 8 + 256 + 4 + 128) / 1e9)
    assert time.total == time.products + time.others + time.starts + time.trips
    assert (
        "80% of the floor is 0.00 ms: 11.02 ms must go"
        in "\n".join(compiled.lines("x", time))[:999]
    )


def test_a_program_without_decoding_is_bound_by_its_products(tmp_path):
    def scanned(x, kernels):
        return jax.lax.scan(lambda y, kernel: (jnp.tanh(y @ kernel), None), x, kernels)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 16), (5, 16, 16))]
    path = tmp_path / "program.hlo.gz"
    path.write_bytes(gzip.compress(jax.jit(scanned).lower(*shapes).compile().as_text().encode()))
    time = compiled.expected(compiled.read(path), RATES)
    assert (time.title, time.trips) == ("the program", 0)
    assert time.floor == pytest.approx(5 * 2 * 4 * 16 * 16 / 1e12)


def test_a_file_without_a_program_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.hlo"):
        compiled.read(tmp_path / "missing.hlo")
    (tmp_path / "other.hlo").write_text("nothing")
    with pytest.raises(UsageError, match="no entry computation"):
        compiled.read(tmp_path / "other.hlo")
