"""The command `etpo`: `etpo train ...` does what `python -m etpo_jax.train ...` does."""

import runpy
import sys

from env.command_line import near_names
from env.version import __version__

PROGRAMS = {
    "train": ("etpo_jax.train", "train a language agent by ETPO or a baseline"),
    "evaluate": ("etpo_jax.evaluate", "measure the rewards or the perplexity of a policy"),
    "reproduce": ("etpo_jax.reproduce", "make the tables and figures of the paper"),
    "plan": ("etpo_jax.plan", "say what a run needs on each device and whether it fits"),
    "export": ("etpo_jax.export", "write a policy as a Hugging Face model or an adapter"),
    "inspect_run": ("etpo_jax.inspect_run", "show what a run or a checkpoint holds"),
    "datasets": ("env.datasets", "list and fetch tables"),
    "run_action": ("env.run_action", "execute one program and print its reward as JSON"),
    "isolation": ("env.isolation", "show which walls this machine has for generated programs"),
    "pretrain_tiny": ("models.pretrain_tiny", "make the stand-in model"),
}


def main() -> int:
    """Runs the program that the first argument names, with the arguments behind it.

    Returns:
      0 after a help or version text, 2 after an unknown name; a program exits by itself.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"etpo_jax {__version__}")
        return 0
    if name not in PROGRAMS:
        near = near_names(name.replace("-", "_"), PROGRAMS)
        hint = f"did you mean {' or '.join(near)}?" if near else "`etpo --help` lists the programs"
        print(f"error: there is no program {name!r}; {hint}", file=sys.stderr)
        return 2
    module, _ = PROGRAMS[name]
    sys.argv[:2] = [f"etpo {name}"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _help() -> str:
    width = max(map(len, PROGRAMS)) + 2
    lines = [f"  {name:{width}}{purpose}" for name, (_, purpose) in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: etpo PROGRAM [--FLAG=VALUE ...]",
            "",
            "Trains language agents by Entropy-Regularized Token-Level Policy Optimization.",
            "",
            *lines,
            "",
            "`etpo PROGRAM --help` lists the flags of a program. A first run:",
            "",
            "  etpo train --flagfile=tiny.flags --run_dir=runs/first",
        ]
    )
