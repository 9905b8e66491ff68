#!/usr/bin/env bash
set -euo pipefail
usage='usage: bash launch/local.sh [--gpus=N] CONFIG [flags of edf_jax.main]

One run on this machine, on N of its NVIDIA GPUs (all of them unless told), or on the CPU where
there are none. Experts and evaluation networks spread over the GPUs, and each student batch of the
distillation is split over them, which changes no number. Makes and fills .venv first. Run again,
it continues.

  bash launch/local.sh --gpus=4 configs/imagenette.py:ipc10 --config.data.path=/data/imagenet

Another split: --config.parallel.trajectory=T --config.parallel.data=D (docs/running.md).
--dry_run prints the plan. EDF_PYTHON=/path/to/python is used instead of .venv.'

gpus="" config="" parallel="" flags=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) echo "$usage"; exit 0 ;;
    --gpus=*) gpus=${argument#*=} ;;
    --config=*) config=${argument#*=} ;;
    --config.parallel.*) parallel=given; flags+=("$argument") ;;
    -*) flags+=("$argument") ;;
    *) if [ -n "$config" ]; then echo "local.sh: what is $argument? (see --help)" >&2; exit 2; fi
      config=$argument ;;
  esac
done
if [ -z "$config" ]; then echo "$usage" >&2; exit 2; fi

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
here=$(count_gpus)
gpus=${gpus:-$here}
if ! [[ "$gpus" =~ ^[0-9]+$ ]] || [ "$gpus" -gt "$here" ]; then
  echo "local.sh: --gpus=$gpus, but this machine has $here NVIDIA GPUs" >&2
  exit 2
fi
if [ "$gpus" -gt 0 ]; then
  # The first N, unless the user has chosen.
  CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}
  export CUDA_VISIBLE_DEVICES
fi
make_environment
install_for_gpus "$gpus"
if [ "$gpus" -gt 1 ] && [ -z "$parallel" ]; then flags+=("--config.parallel.data=$gpus"); fi
exec "$venv_python" -m edf_jax.main --config="$config" ${flags[@]+"${flags[@]}"}
