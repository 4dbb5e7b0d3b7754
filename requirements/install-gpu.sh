#!/usr/bin/env bash
# Install a pinned environment for NVIDIA GPUs: requirements/install-gpu.sh [FOLDER, default .venv-gpu] [gpu|gpu-tested]
# Needs Linux x86-64, Python 3.12 and an NVIDIA driver of version 580 or newer (CUDA 13). Running it again skips what is
# already done.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-gpu}
set=${2:-gpu}
lock=requirements/$set.txt
python=${PYTHON:-python3.12}
min_driver=580
wheelhouse=https://verl-project.github.io/verl-wheelhouse/simple/

fail() { echo "set-up: $*" >&2; exit 1; }

[ -f "$lock" ] || fail "there is no set of packages $set; the sets are gpu (verl's own pins) and gpu-tested (the versions that our tests run with)."
case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  *) fail "the lock files are for Linux on x86-64, this is $(uname -s) on $(uname -m). Install verl as its documents say for your machine, then this package with --no-deps." ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null ||
  fail "$python is not a Python 3.12, for which the lock files are (verl's flash-attn wheel too). Name another: PYTHON=/path/to/python3.12 make setup-gpu"
if driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) && [ -n "$driver" ]; then
  [ "${driver%%.*}" -ge $min_driver ] ||
    fail "the NVIDIA driver is $driver, and CUDA 13 needs $min_driver or newer. Update the driver of the machine; a container cannot bring one."
  echo "set-up: NVIDIA driver $driver"
else
  echo "set-up: no GPU is seen here (nvidia-smi). The machine that runs this needs an NVIDIA driver $min_driver or newer."
fi
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
  fail "$python has no Python.h, with which Triton compiles its kernels. On Debian: apt-get install python3.12-dev"
for tool in g++ make; do
  command -v $tool >/dev/null || fail "$tool was not found; TextWorld's planner is compiled on installation. On Debian: apt-get install build-essential"
done

done_mark=$venv/.installed
state=$(cat "$lock" pyproject.toml | sha256sum)
[ -f "$done_mark" ] && [ "$(cat "$done_mark")" = "$state" ] && exit 0
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "could not make $venv. On Debian: apt-get install python3.12-venv"
venv=$(cd "$venv" && pwd)
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet uv==0.13.8 || fail "pip could not install uv; check the network."
uv_install=("$venv/bin/uv" pip install --quiet --no-deps --python "$venv/bin/python")

echo "set-up: $(grep -c '==' "$lock") pinned packages of $lock (some 5 GB)"
"${uv_install[@]}" -r "$lock" || fail "a pinned package could not be installed; the lines above say which."
"${uv_install[@]}" hatchling hatch-vcs setuptools-scm vcs-versioning editables pathspec pluggy trove-classifiers packaging
"${uv_install[@]}" --no-build-isolation --editable ".[all]" || fail "this package could not be installed."
# Without this wheel nothing is marked as done, so that the next call tries again.
if [ "$set" != gpu ] ||
  "${uv_install[@]}" --only-binary flash-attn --default-index "$wheelhouse" flash-attn==2.8.3; then
  echo "$state" > "$done_mark"
else
  echo "set-up: verl's wheelhouse gave no wheel of flash-attn. Try again, or see docs/how-to/gpu.md for other ways." >&2
fi
echo "set-up: done. Go on with: source ${venv}/bin/activate && verl-act doctor"
