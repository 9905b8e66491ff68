#!/usr/bin/env bash
# Measures every row of "One GPU" in docs/benchmarks.md that has none yet, in ten minutes at most:
# `bash benchmarks/gpu_day.sh [--minutes=9.5] [--records=FILE]`, with JAX for the GPU and PyTorch in
# the Python that is PYTHON (default python). The same command goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu_day "$@"
