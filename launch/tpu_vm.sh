#!/usr/bin/env bash
set -euo pipefail
usage='usage: bash launch/tpu_vm.sh --name=NAME --zone=ZONE [options] CONFIG [flags of edf_jax.main]

One run on a Cloud TPU: makes the TPU VM where it is not there, copies this checkout to all its
hosts, installs it there, runs, and copies the run back to runs/. Run again, it continues, as long
as the VM has its disk.

  --type=TYPE       accelerator type (default v4-8); several hosts find each other
  --version=IMAGE   software version (default by type: v2-alpha-tpuv5-lite for v5litepod,
                    v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e, else tpu-ubuntu2204-base)
  --gcloud=FLAGS    more flags for making the VM, such as --gcloud="--spot --data-disk=..."
  --delete          delete the VM after the run is copied back
  --dry_run         print the commands, run none

  bash launch/tpu_vm.sh --name=edf --zone=us-central2-b --type=v4-8 configs/imagenette.py:ipc10 \
    --config.precision=bfloat16 --config.data.path=/mnt/disks/data/imagenet --workdir=runs/nette10

The workdir is on the first host; the images must be there under the same path on every host.'

name="" zone="" type=v4-8 version="" more="" delete="" dry="" config="" workdir=""
flags=()
for argument in "$@"; do
  value=${argument#*=}
  case "$argument" in
    -h | --help) echo "$usage"; exit 0 ;;
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --gcloud=*) more=$value ;;
    --delete) delete=yes ;;
    --dry_run) dry=yes ;;
    --workdir=*) workdir=$value ;;
    --config=*) config=$value ;;
    -*) flags+=("$argument") ;;
    *) if [ -n "$config" ]; then echo "tpu_vm.sh: what is $argument? (see --help)" >&2; exit 2; fi
      config=$argument ;;
  esac
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$config" ]; then echo "$usage" >&2; exit 2; fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "$version" ]; then
  case "$type" in
    v5litepod*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
workdir=${workdir:-runs/$(basename "${config%%.py*}")-tpu}
vm=(gcloud compute tpus tpu-vm)
read -r -a given <<<"$more"

do_it() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

on_hosts() { # WORKERS COMMAND
  do_it "${vm[@]}" ssh "$name" "--zone=$zone" "--worker=$1" "--command=$2"
}

if [ -n "$dry" ] || ! "${vm[@]}" describe "$name" "--zone=$zone" >/dev/null 2>&1; then
  do_it "${vm[@]}" create "$name" "--zone=$zone" "--accelerator-type=$type" "--version=$version" \
    ${given[@]+"${given[@]}"}
fi
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
archive=edf_jax.tar.gz
# What git knows, with the changes that are not committed.
git ls-files -z | while IFS= read -r -d '' file; do
  if [ -e "$file" ]; then printf '%s\0' "$file"; fi
done | tar -czf "$package/$archive" --null -T -
do_it "${vm[@]}" scp "$package/$archive" "$name:$archive" "--zone=$zone" --worker=all
# The images' own Python may be older than 3.11.
new_enough="python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'"
make_venv="if $new_enough 2>/dev/null; then python3 -m venv .venv; else\
 python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --seed --python 3.12 .venv; fi"
on_hosts all "mkdir -p edf_jax && tar -xzf $archive -C edf_jax && cd edf_jax &&\
 { [ -x .venv/bin/pip ] || { $make_venv; }; } && .venv/bin/pip install -q -e '.[tpu]'"
status=0
on_hosts all "cd edf_jax && .venv/bin/python -m edf_jax.main --distributed\
 $(printf '%q ' "--config=$config" "--workdir=$workdir" ${flags[@]+"${flags[@]}"})" || status=$?
mkdir -p "$(dirname "$workdir")"
do_it "${vm[@]}" scp --recurse "$name:edf_jax/$workdir" "$(dirname "$workdir")/" "--zone=$zone" \
  --worker=0 || echo "tpu_vm.sh: there is no $workdir to copy back" >&2
if [ -n "$delete" ] && [ "$status" = 0 ]; then
  do_it "${vm[@]}" delete "$name" "--zone=$zone" --quiet
fi
exit "$status"
