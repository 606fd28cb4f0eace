"""The variables of one network: policy, critic and target critic are roles of one trunk."""

from typing import Any

Role = dict[str, Any]
"""Variables of one network over the common trunk.

`{"params": tree}` for full fine-tuning, `{"lora": tree}` for an adapter over the frozen base, and
an empty dict for the reference, which is the base alone. With `--finetune=...:tilt=` a role also
holds `tilt`, the coefficients of `etpo_jax.distribution.Distribution.tilted`.
"""
