"""What JAX compiles is counted, and reported where it takes long."""

import jax
import jax.numpy as jnp

from etpo_jax.devices.compilations import Compilations


def test_compilations_are_counted_while_the_context_is_open():
    lines, names = [], []
    with Compilations(lines.append, patience_s=0.0) as found:
        found.on_start = names.append
        jax.jit(lambda x: jnp.tanh(x) + 41.5).lower(1.0).compile()
        assert found.count == 1
        assert names == ["<lambda>"]
        assert lines[-1].startswith("<lambda> took ")
        assert found.seconds > 0
        seconds, rest = found.summary().split(" s, ", 1)
        assert float(seconds) >= 0
        assert rest.endswith(" s of it compiling 1 programs")
    jax.jit(lambda x: jnp.tanh(x) + 42.5).lower(1.0).compile()
    assert found.count == 1


def test_a_quick_compilation_is_not_reported():
    lines = []
    with Compilations(lines.append, patience_s=600.0) as found:
        jax.jit(lambda x: jnp.tanh(x) + 43.5).lower(1.0).compile()
    assert (found.count, lines) == (1, [])
