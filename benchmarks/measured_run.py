"""A training run whose final policy is then measured on fresh samples.

    python -m benchmarks.measured_run --num_samples=128 FLAGS OF etpo_jax.train

The figures of `final_policy.measure` go to final.json in the run directory.
"""

from pathlib import Path

from absl import flags

from benchmarks import search
from env import command_line
from etpo_jax import flags as settings_flags
from etpo_jax import train
from etpo_jax.launch_files import launch_folder
from etpo_jax.reproduction import final_policy
from etpo_jax.runs import files
from models.errors import ModelError

_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", final_policy.NUM_SAMPLES, "Episodes of the final policy.", lower_bound=2
)


def main() -> int:
    """Trains as the flags say and measures the policy at the end."""
    status = train.main()
    if status == 0:
        run_dir = Path(flags.FLAGS.run_dir)
        files.write_json(
            run_dir / search.FINAL_FILE, final_policy.measure(run_dir, _NUM_SAMPLES.value)
        )
    return status


if __name__ == "__main__":
    command_line.run(
        main,
        errors=(ModelError,),
        flagfile_folders=(launch_folder(),),
        before_parsing=settings_flags.define_chosen,
    )
