"""Shapes in signatures are checked while testing; the platform is chosen before jax starts."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests run for milliseconds and compile for seconds: a third as long without LLVM's
# optimisations, half of that without fused kernels of XLA. Later lines of jax end on the second
# flag. Processes that tests start inherit both.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook

from tests.skipped import lines_by_reason

_MATHEMATICS = ("divergence", "losses", "soft_q")
_BASELINES = ("algorithms.clipped_losses", "algorithms.poad", "algorithms.ppo_kl")
_CHECKED = tuple(f"etpo_jax.{name}" for name in (*_MATHEMATICS, *_BASELINES))
install_import_hook(_CHECKED, "beartype.beartype")


def pytest_terminal_summary(terminalreporter):
    """Sums up skipped tests in one line a reason; `-rs` lists them by place."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped]
    if reasons:
        terminalreporter.section(f"{len(reasons)} skipped, by reason")
        for line in lines_by_reason(reasons):
            terminalreporter.write_line(line)
