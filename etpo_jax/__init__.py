"""Entropy-Regularized Token-Level Policy Optimization (arXiv 2402.06700) in JAX."""

from env.version import __version__

__all__ = ["__version__"]
