#!/usr/bin/env bash
# Distils the built-in cluttered digits on a laptop CPU: `bash launch/demo.sh [flags of edf_jax.main]`.
# Makes and fills .venv first. Run again, it continues, or shows the finished run's result.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_project
exec "$venv_python" -m edf_jax.main \
  --config=configs/cluttered_digits.py:demo --workdir=runs/demo "$@"
