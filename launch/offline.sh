#!/usr/bin/env bash
# Collects, on a machine with network, what a machine without network needs to train on NVIDIA GPUs:
# the wheels and this project's files. docs/bare_gpu.md has the way from there.
#
#   launch/offline.sh FOLDER               # the other machine has Python and NVIDIA's driver: 2.7 GB
#   launch/offline.sh FOLDER INSTALLED     # it has JAX for its GPU as well: what INSTALLED lacks
#
# INSTALLED is the output of `pip list --format=freeze` there. Both machines have the same minor
# version of Python (PYTHON=python3.12 names one) and x86-64 processors; GLIBC=28 is the minor
# version of the C library that the wheels may need (`ldd --version` there). JAX=0.11.2 asks for that
# version of jax and jaxlib.
set -euo pipefail
if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: $0 FOLDER [INSTALLED]" >&2
  exit 2
fi
folder=$1 installed=${2:-}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder/wheels"
wheels=$(cd "$folder/wheels" && pwd)

git -C "$root" archive --format=tar.gz --prefix=etpo_jax/ --output="$wheels/../etpo_jax.tar.gz" HEAD

options=(--quiet --disable-pip-version-check --only-binary=:all: --find-links "$wheels" --dest "$wheels"
  --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
for ((minor = ${GLIBC:-28}; minor >= 5; minor--)); do
  options+=(--platform "manylinux_2_${minor}_x86_64")
done
[[ -n ${JAX:-} ]] && options+=("jax==$JAX" "jaxlib==$JAX")

# Published as source alone; a wheel of it runs anywhere.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" 'liac-arff>=2.5'
if [[ -z $installed ]]; then
  "$python" -m pip download "${options[@]}" --requirement "$root/requirements-cuda.txt"
else
  "$python" -m pip download "${options[@]}" --requirement "$root/requirements.txt"
  # Names are compared as pip does: without case, with - for _ and a dot.
  present=" $(cut -d= -f1 "$installed" | tr '\n' ' ') " && present=${present//[_.]/-}
  for wheel in "$wheels"/*.whl; do
    name=${wheel##*/} && name=${name%%-*} && name=${name//[_.]/-}
    if [[ ${present,,} == *" ${name,,} "* ]]; then
      rm "$wheel"
    fi
  done
fi
(cd "$wheels" && du --block-size=MB --apparent-size -- *.whl | sort --reverse --numeric-sort)
du --block-size=MB --apparent-size --summarize "$folder"
