"""Entropy-Regularized Token-Level Policy Optimization (arXiv 2402.06700) in JAX."""
