"""The version of the distribution `etpo_jax`, stated once: every package and the build read it."""

__version__ = "0.2.0"
