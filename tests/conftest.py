"""Shapes in signatures are checked while testing; the platform is chosen before jax starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

_CHECKED = ("etpo_jax.divergence", "etpo_jax.losses", "etpo_jax.soft_q")
install_import_hook(_CHECKED, "beartype.beartype")
