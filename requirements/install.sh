#!/usr/bin/env bash
# Install the pinned CPU environment into a virtual environment: requirements/install.sh [FOLDER, default .venv]
# Running it again changes nothing; it does work only when a lock file has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || echo python3.11)}
lock=requirements/cpu.txt
done_mark=$venv/.installed

fail() { echo "set-up: $*" >&2; exit 1; }

if [ -f "$done_mark" ] && [ "$(cat "$done_mark")" = "$(cat $lock pyproject.toml | sha256sum)" ]; then
  exit 0
fi
case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  *) fail "the CPU lock file is for Linux on x86-64, this is $(uname -s) on $(uname -m). See docs/how-to/gpu.md, or use a Linux machine." ;;
esac
command -v "$python" >/dev/null || fail "$python was not found. Install Python 3.11 or 3.12, or name yours: PYTHON=/path/to/python3.11 make setup"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' ||
  fail "$python is $("$python" --version 2>&1), but the lock file is for Python 3.11 and 3.12. Name another: PYTHON=/path/to/python3.11 make setup"
for tool in g++ make; do
  command -v $tool >/dev/null || fail "$tool was not found; TextWorld's planner is compiled on installation. On Debian: apt-get install build-essential"
done

echo "set-up: virtual environment in $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "could not make $venv. On Debian: apt-get install python3-venv"
venv=$(cd "$venv" && pwd)
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet uv==0.13.8 ||
  fail "pip could not install uv; check the network and 'pip config list'."
# uv does not read pip's settings, so a folder of wheels named there is passed on.
uv_install=(uv pip install --quiet --no-deps ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"})

torch=$(grep -E '^torch==' $lock)
if ! "$venv/bin/python" -c "import torch, sys; sys.exit('torch==' + torch.__version__ != '$torch')" 2>/dev/null; then
  echo "set-up: $torch"
  "${uv_install[@]}" "$torch" 2>/dev/null ||
    "${uv_install[@]}" "$torch" --index-url https://download.pytorch.org/whl/cpu ||
    fail "$torch could not be had from your package index nor from PyTorch's CPU index. Check the network, or put its wheel into a folder and set PIP_FIND_LINKS to it."
fi
echo "set-up: $(grep -c '==' $lock) pinned packages (a few minutes the first time)"
"${uv_install[@]}" -r $lock || fail "a pinned package could not be installed; the lines above say which."
"${uv_install[@]}" --no-build-isolation --editable ".[all]" || fail "this package could not be installed."
"$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python3.*/site-packages >/dev/null 2>&1 || true
cat $lock pyproject.toml | sha256sum > "$done_mark"
echo "set-up: done"
