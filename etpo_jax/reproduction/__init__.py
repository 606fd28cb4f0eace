"""Parts of `etpo_jax.reproduce`: a grid of runs, statistics over them, tables and figures."""
