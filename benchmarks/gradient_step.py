"""CPU time of a gradient step, ours and the same mathematics in PyTorch.

    python -m benchmarks.gradient_step --remat=none
    python -m benchmarks.gradient_step --model=HuggingFaceTB/SmolLM2-135M --transitions=4

Always on a CPU: on an accelerator `benchmarks.iteration` and `benchmarks.device` measure the step.
The jitted step of ETPO against `benchmarks.gradient_step_torch`: the same weights and batch,
float32, one process and one core; the embeddings of --model are untied. Both first take steps whose
metrics and gradients must agree, then they are measured in turns. Needs torch
(requirements-parity.txt).
"""

import dataclasses
import os
import pathlib

import jax
from absl import flags

from benchmarks import gradient_step_parity, records, turns
from benchmarks.random_model import decoder_config
from benchmarks.turns import Times
from env import command_line
from models.config import DecoderConfig
from models.errors import ModelError
from models.repository import config_folder
from models.transformer import REMAT

_SHAPES = ((128, 64), (64, 32))
"""Lengths in tokens of prompt and action: the demonstration's bucket and a short one."""
_ROUND_S = 0.5

_SIZE = flags.DEFINE_enum(
    "size", "tiny", ["tiny", "medium"], "Shape of the model; tiny: the stand-in's."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Model whose shape is taken in place of --size: a folder or a repository."
)
_TRANSITIONS = flags.DEFINE_integer(
    "transitions", 16, "Transitions of a gradient step.", lower_bound=2
)
_MODE = flags.DEFINE_enum("mode", "retrace", list(gradient_step_parity.MODES), "Critic loss.")
_REMAT = flags.DEFINE_enum("remat", "full", REMAT, "Recomputation in our backward pass.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Measured rounds of each program.", lower_bound=5)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File for the table; its measurements are written beside it as JSON lines."
)


def main() -> None:
    gradient_step_torch = gradient_step_parity.import_peer()
    gradient_step_torch.torch.set_num_threads(1)
    # Before anything starts XLA's threads, which inherit it.
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    jax.config.update("jax_platforms", "cpu")
    torch_version = gradient_step_torch.torch.__version__
    if _MODEL.value is None:
        decoder = decoder_config(_SIZE.value, 1024)
    else:
        published = DecoderConfig.from_folder(config_folder(_MODEL.value))
        # Random tied embeddings saturate the softmax: its gradients would be mostly rounding.
        decoder = dataclasses.replace(published, tie_word_embeddings=False)
    lines = [
        f"One update of {_TRANSITIONS.value} transitions, {_MODEL.value or _SIZE.value} model, "
        f"critic loss {_MODE.value} with {gradient_step_parity.MODES[_MODE.value]} Q, float32, "
        f"remat {_REMAT.value} in etpo_jax, one core of {os.cpu_count()}, load average "
        f"{os.getloadavg()[0]:.1f}; jax {jax.__version__}, torch {torch_version}; medians of "
        f"{_REPEATS.value} rounds, ranges of their ratios.",
        "",
        "| prompt + action | etpo_jax CPU ms | torch CPU ms | torch / etpo_jax | etpo_jax wall ms |"
        " torch wall ms | torch / etpo_jax | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    made = records.beside(_OUTPUT.value)
    for prompt, action in _SHAPES:
        shape = f"{prompt} + {action}"

        def note(name: str, index: int, cpu_s: float, wall_s: float, shape: str = shape) -> None:
            made.add(program=name, tokens=shape, round=index, cpu_s=cpu_s, wall_s=wall_s)

        problem = gradient_step_parity.make_problem(
            decoder,
            _MODE.value,
            _TRANSITIONS.value,
            prompt,
            action,
            _REMAT.value,
        )
        ours = gradient_step_parity.Ours(problem)
        theirs = gradient_step_parity.make_theirs(gradient_step_torch, problem)
        difference = gradient_step_parity.largest_difference(ours, theirs)
        times = turns.measure(
            {"ours": ours, "theirs": theirs},
            rounds=_REPEATS.value,
            round_s=_ROUND_S,
            on_times=note,
        )
        lines.append(_row(shape, times["ours"], times["theirs"], difference))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text)


def _row(name: str, ours: Times, theirs: Times, difference: float) -> str:
    cells = [name]
    for clock in ("cpu", "wall"):
        our_ms, their_ms = 1e3 * ours.median(clock), 1e3 * theirs.median(clock)
        ratios = ours.ratios(clock, theirs)
        cells += [f"{our_ms:.1f}", f"{their_ms:.1f}"]
        cells.append(f"{their_ms / our_ms:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join([*cells, f'{difference:.0e}'])} |"


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
