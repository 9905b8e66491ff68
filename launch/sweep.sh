#!/usr/bin/env bash
set -euo pipefail
usage='usage: bash launch/sweep.sh [options] [flags of edf_jax.main for every run]

Runs each config with each variant, one after the other, and prints a table of all. Runs that are
finished with these flags are left alone and others continued, so run again it goes on where it
stopped; a run that other flags would change ends in a line.

  --configs=NAMES    of files in configs/ (default imagenette,imagewoof)
  --variants=NAMES   of each (default ipc1,ipc10,ipc50)
  --runs=FOLDER      where runs and table.md go (default runs/sweep)
  --dry_run          print the plan of each run, run none

  bash launch/sweep.sh --configs=imagenette,imagefruit --variants=ipc1,ipc10 \
    --config.data.path=/data/imagenet

EDF_PYTHON=/path/to/python is used instead of .venv.'

configs=imagenette,imagewoof variants=ipc1,ipc10,ipc50 runs=runs/sweep dry="" flags=()
for argument in "$@"; do
  value=${argument#*=}
  case "$argument" in
    -h | --help) echo "$usage"; exit 0 ;;
    --configs=*) configs=$value ;;
    --variants=*) variants=$value ;;
    --runs=*) runs=$value ;;
    --dry_run) dry=yes; flags+=("$argument") ;;
    -*) flags+=("$argument") ;;
    *) echo "sweep.sh: what is $argument? (see --help)" >&2; exit 2 ;;
  esac
done

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_for_gpus
IFS=, read -r -a configs <<<"$configs"
IFS=, read -r -a variants <<<"$variants"
done_runs=() failed=()
for config in "${configs[@]}"; do
  for variant in "${variants[@]}"; do
    workdir=$runs/$config-$variant
    # What a finished run was last asked for.
    asked=$runs/.$config-$variant.flags
    given=$(printf '%q ' ${flags[@]+"${flags[@]}"})
    if [ -z "$dry" ] && [ -f "$workdir/result.json" ] && [ -f "$workdir/report.html" ] &&
      [ "$(cat "$asked" 2>/dev/null)" = "$given" ]; then
      echo "sweep.sh: $workdir is finished" >&2
      done_runs+=("$workdir")
      continue
    fi
    echo "sweep.sh: $workdir" >&2
    status=0
    "$venv_python" -m edf_jax.main "--config=configs/$config.py:$variant" "--workdir=$workdir" \
      ${flags[@]+"${flags[@]}"} || status=$?
    case $status in
      0)
        done_runs+=("$workdir")
        [ -n "$dry" ] || printf '%s' "$given" >"$asked"
        ;;
      # Asked to stop: the others too.
      75 | 130 | 143) exit "$status" ;;
      *) failed+=("$workdir (status $status)") ;;
    esac
  done
done
if [ -z "$dry" ] && [ "${#done_runs[@]}" -gt 0 ]; then
  "$venv_python" -m edf_jax.report --table "${done_runs[@]}" >"$runs/.table.tmp"
  mv "$runs/.table.tmp" "$runs/table.md"
  cat "$runs/table.md"
fi
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'sweep.sh: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
