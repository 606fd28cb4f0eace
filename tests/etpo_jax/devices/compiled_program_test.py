"""Figures of compiled programs, of small ones compiled here and of a text in the style of a GPU."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from etpo_jax.devices import compiled_figures, compiled_program
from etpo_jax.devices.compiled_figures import Work

# One turn of its loop updates a cache in place, and gathers rows of a table for a product.
TEXT = (Path(__file__).parent / "generation.hlo").read_text()


@pytest.fixture
def program():
    return compiled_program.parse(TEXT)


def test_the_loop_that_carries_the_cache_is_found_and_counted(program):
    (loop,) = compiled_figures.decode_loops(program)
    assert (loop.name, program.trip_count(loop)) == ("a.3", None)
    seen = compiled_figures.figures(program, loop.called("body"))
    # The call, three fusions, two copies and a start, a collective; three turns and one of the
    # inner loops with two instructions each.
    assert seen.kernels == 1 + 3 + 3 + 1 + (3 + 1) * 2
    # The transposition and the copy that is not to memory on the chip.
    assert (seen.copies, seen.copied_bytes, seen.largest_copy) == (2, 2 * 128, 128)
    assert seen.data_dependent_loops == 1
    assert seen.collectives == {"all-gather": (1, 512)}
    assert seen.custom_calls == {"__example$call": 1}


def test_traffic_counts_slices_and_updates_in_place_of_whole_arrays(program):
    (loop,) = compiled_figures.decode_loops(program)
    body = loop.called("body")
    works = {work.name: work for work in compiled_figures.work(program, body)}
    # The update and the index; two gathered rows, their ids and a kernel of 4 x 16.
    assert works["f.1"] == Work("f.1", 1, read=16 + 4, written=16, flops=0)
    assert works["f.2"] == Work("f.2", 1, read=32 + 8 + 256, written=128, flops=2 * 2 * 16 * 4)
    turns = [work.times for work in compiled_figures.work(program, body) if work.name == "x.2"]
    assert turns == [3, 1]


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        compiled_program.parse("HloModule m\n")


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return compiled_program.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_turns_that_the_compiler_knows_and_those_that_depend_on_data():
    def fixed(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(y @ y), x)

    def searching(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: jnp.tanh(y @ y) / 2, x)

    for function, turns in ((fixed, 7), (searching, None)):
        program = compiled(function, (8, 8))
        (loop,) = program.loops()
        assert program.trip_count(loop) == turns


def test_a_counter_up_to_a_constant_is_a_number_of_turns():
    """As in texts for TPUs, which do not note it."""
    without = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    counted = without.replace(
        "%y.2 = pred[] compare(%y.1, %y.1)", "%y.2 = pred[] compare(%y.1, %y.0)"
    )
    counted = counted.replace("  %y.1 =", "  %y.0 = s32[] constant(5)\n  %y.1 =")
    for text, turns in ((without, None), (counted, 5)):
        program = compiled_program.parse(text)
        assert {program.trip_count(loop) for loop in program.loops()[1:]} == {turns}


def test_one_loop_for_each_part_of_the_cache_and_rounds_of_tokens():
    def generate(cache, kernel):
        """Rounds of four tokens until the sum is large, with half of the cache and with all."""
        for slots in (128, 256):

            def token(_, cache, slots=slots):
                row = jnp.tanh(jnp.mean(cache[:slots] @ kernel, axis=0))
                return jax.lax.dynamic_update_slice_in_dim(cache, row[None], slots - 1, axis=0)

            cache = jax.lax.while_loop(
                lambda cache: jnp.sum(cache) < 10,
                lambda cache, token=token: jax.lax.fori_loop(0, 4, token, cache),
                cache,
            )
        return cache

    program = compiled(generate, (256, 64), (64, 64))
    loops = compiled_figures.decode_loops(program)
    assert [program.trip_count(loop) for loop in loops] == [4, 4]
    flops = [
        sum(work.flops for work in compiled_figures.work(program, loop.called("body")))
        for loop in loops
    ]
    assert flops == [2 * 128 * 64 * 64, 2 * 256 * 64 * 64]


def test_products_are_counted_with_the_turns_of_their_loop():
    def scanned(x, kernels):
        return jax.lax.scan(lambda y, kernel: (jnp.tanh(y @ kernel), None), x, kernels)[0]

    program = compiled(scanned, (4, 16), (5, 16, 16))
    works = list(compiled_figures.work(program, program.entry))
    assert sum(work.flops * work.times for work in works) == 5 * 2 * 4 * 16 * 16


def test_an_array_that_a_loop_must_not_overwrite_is_copied():
    def grown(cache, steps):
        """Returns the old cache as well, so the loop works on a copy."""

        def write(i, cache):
            return cache.at[i].set(steps[i])

        return cache, jax.lax.fori_loop(0, steps.shape[0], write, cache)

    program = compiled(grown, (256, 64), (8, 64))
    whole = compiled_figures.figures(program, program.entry)
    assert whole.largest_copy == 256 * 64 * 4
    (loop,) = compiled_figures.decode_loops(program)
    inside = compiled_figures.figures(program, loop.called("body"))
    assert inside.largest_copy < 256 * 64 * 4
