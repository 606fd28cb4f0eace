"""Pallas kernels for attention."""
