#!/usr/bin/env bash
# Starts a run on every host of a TPU slice, from a machine that has gcloud:
#
#   launch/tpu_pod.sh NAME ZONE launch/codellama_7b_v5e_16.flags /mnt/shared/runs/first [--FLAG=VALUE ...]
#
# Every host has the project in ~/etpo_jax, installed as in docs/installation.md, and sees the run
# directory and the model under the same paths. It stays in the foreground (tmux keeps it when the
# connection ends); the same command again resumes the run.
set -euo pipefail
if [[ $# -lt 4 ]]; then
  echo "usage: $0 NAME ZONE FLAGFILE RUN_DIR [--FLAG=VALUE ...]" >&2
  exit 2
fi
name=$1 zone=$2 flagfile=$3 run_dir=$4
shift 4
printf -v train '%q ' .venv/bin/python -m etpo_jax.train \
  "--flagfile=$flagfile" "--run_dir=$run_dir" --hosts=auto "$@"
exec gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all \
  "--command=cd etpo_jax && exec $train"
