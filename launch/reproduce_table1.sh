#!/usr/bin/env bash
# EDF's main table from a folder of ImageNet: `bash launch/reproduce_table1.sh /data/imagenet [flags]`.
# --help tells the flags, --dry_run what it would take. Run again, it continues.
set -euo pipefail
case "${1:-}" in /* | -* | "") folder=() ;; *) folder=("$(realpath -m "$1")"); shift ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_for_gpus
exec "$venv_python" -m experiments.table1 ${folder[@]+"${folder[@]}"} "$@"
