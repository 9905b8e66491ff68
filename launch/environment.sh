# shellcheck shell=bash
# Sourced by the launch scripts: `.venv` at the root of the checkout, with edf_jax installed
# editable. Nothing is installed, and no network needed, while pyproject.toml stays as it is.
# PYTHON=/path/to/python names the interpreter to make it with. EDF_PYTHON=/path/to/python is used as
# it is, where edf_jax is installed already: nothing is made or installed then.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv_python=${EDF_PYTHON:-.venv/bin/python}

find_python() {
  local candidate version without_venv="" candidates
  candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    # Asked by running it: pyenv and Windows leave commands of these names that do not run.
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  if [ -n "$without_venv" ]; then
    version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "edf_jax: $without_venv lacks the venv module: install it (on Debian and Ubuntu" \
      "'apt-get install python$version-venv'), or name another Python by PYTHON=/path/to/python." >&2
  else
    echo "edf_jax needs Python 3.11 or newer; looked for: ${candidates[*]}. Install one," \
      "or name it by PYTHON=/path/to/python." >&2
  fi
  return 1
}

make_environment() {
  local python
  [ -z "${EDF_PYTHON:-}" ] || return 0
  if ! "$venv_python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version)." >&2
    "$python" -m venv .venv || exit 1
  fi
}

# NVIDIA GPUs that this machine shows.
count_gpus() {
  if command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true; else echo 0; fi
}

# The extra for NVIDIA GPUs: the CUDA that .venv has already, since JAX starts with one alone, else the
# newest that this machine's driver runs.
cuda_extra() {
  local version driver
  for version in 12 13; do
    if [ -n "$(find .venv/lib -maxdepth 3 -name "jax_cuda${version}_plugin" -print -quit 2>/dev/null)" ]; then
      echo "cuda$version"
      return
    fi
  done
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
  driver=${driver%%.*}
  if [[ "$driver" =~ ^[0-9]+$ ]] && [ "$driver" -ge 580 ]; then echo cuda13; else echo cuda12; fi
}

# install_for_gpus [N]: with CUDA for N GPUs, those of this machine unless told; without for none.
install_for_gpus() {
  if [ "${1:-$(count_gpus)}" -gt 0 ]; then install_project "$(cuda_extra)"; else install_project; fi
}

# install_project [EXTRA...]: edf_jax and those extras, unless they are there for this pyproject.toml.
install_project() {
  local wanted stamp extras missing=""
  [ -z "${EDF_PYTHON:-}" ] || return 0
  wanted=$({ pwd; cat pyproject.toml setup.py; } | cksum)
  for stamp in core "$@"; do
    [ "$(cat ".venv/.edf_jax-$stamp" 2>/dev/null)" = "$wanted" ] || missing=yes
  done
  [ -n "$missing" ] || return 0
  extras=$(IFS=,; echo "$*")
  echo "Installing edf_jax${extras:+ ($extras)} into .venv; minutes the first time." >&2
  # Twice quiet: errors only.
  "$venv_python" -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}" || {
    echo "edf_jax: installing failed; pip says why above." >&2
    exit 1
  }
  for stamp in core "$@"; do
    echo "$wanted" >".venv/.edf_jax-$stamp"
  done
}
