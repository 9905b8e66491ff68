#!/usr/bin/env bash
# Runs the tests in .venv, which it makes and fills first: `bash launch/test.sh [flags of pytest]`.
# `-m slow` runs those that take minutes; tests of PyTorch's side need `pip install torch` in .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
install_project test
exec "$venv_python" -m pytest "$@"
