"""Learning algorithms, one file each, and the parts that they share.

Importing the package registers the built-in algorithms.
"""

from etpo_jax.algorithms import etpo, poad, ppo_kl, reflection

__all__ = ["etpo", "poad", "ppo_kl", "reflection"]
