"""Trains a language agent by ETPO (Algorithm 1) or runs a baseline.

  etpo train --flagfile=tiny.flags --run_dir=runs/demo

The same command again resumes the run from its last checkpoint.
"""

import sys

from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax import flags as settings_flags
from etpo_jax import plan, rehearsal, startup
from etpo_jax.algorithms.gradients import NonFiniteError
from etpo_jax.devices import hosts
from etpo_jax.launch_files import launch_folder
from etpo_jax.renamed import RENAMED
from etpo_jax.runs.console import Console
from etpo_jax.trainer import Trainer
from models.errors import ModelError

settings_flags.define_flags()
flags.adopt_module_key_flags(settings_flags)
_HOSTS = flags.DEFINE_string(
    "hosts",
    "",
    "Several hosts that run one program: auto finds them on TPU pods, Slurm and Open MPI, "
    "HOST:PORT,COUNT,INDEX names the first one's address, their number and which one this is.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the run in --run_dir and start anew.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but warnings and errors.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Open table, wall and tokenizer, show them with a prompt and the plan of the run, and stop.",
)


def main() -> int:
    """Trains as the flags say; the exit code is 128 + signal where a signal stopped the run."""
    config = settings_flags.from_flags()
    if _DRY_RUN.value:
        console = Console()
        console.greet(*startup.title(config))
        for fact in rehearsal.rehearse(config, overwrite=_OVERWRITE.value):
            console.tell(fact)
        console.say(f"\n{plan.describe(config)}")
        return 0
    if not config.run.run_dir:
        raise UsageError("--run_dir is missing: name the folder that keeps the run")
    hosts.initialize(_HOSTS.value)
    try:
        trainer = Trainer.from_config(config, overwrite=_OVERWRITE.value, quiet=_QUIET.value)
        result = trainer.train()
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 128 + result.signal if result.signal else 0


if __name__ == "__main__":
    with hosts.leaving():
        command_line.run(
            main,
            errors=(ModelError,),
            sections=settings_flags.help_sections(),
            flagfile_folders=(launch_folder(),),
            before_parsing=settings_flags.define_chosen,
            renamed=RENAMED,
        )
