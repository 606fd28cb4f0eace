#!/usr/bin/env bash
#SBATCH --job-name=etpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#
# One process for each GPU, on one machine or several:
#
#   sbatch launch/slurm.sh launch/codellama_7b_a100x4.flags /shared/runs/first [--FLAG=VALUE ...]
#   sbatch --nodes=4 launch/slurm.sh launch/codellama_7b_a100x4.flags /shared/runs/second --mesh=fsdp:16
#
# Submit it in the project's folder, which all machines see, like the run directory and the model.
# Five minutes before its time is up the run saves itself; the same command again resumes it.
set -euo pipefail
if [[ $# -lt 2 ]]; then
  echo "usage: sbatch $0 FLAGFILE RUN_DIR [--FLAG=VALUE ...]" >&2
  exit 2
fi
flagfile=$1 run_dir=$2
shift 2
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
exec srun .venv/bin/python -m etpo_jax.train \
  "--flagfile=$flagfile" "--run_dir=$run_dir" --hosts=auto \
  "--executor=local:workers=${SLURM_CPUS_PER_TASK:-8}" "$@"
