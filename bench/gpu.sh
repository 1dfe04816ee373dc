#!/usr/bin/env bash
# What a GPU owner runs: build, the tests that need a GPU, every kernel's benchmark, the whole line. Under ten minutes.
#
#   bash bench/gpu.sh            results in out/gpu, one JSON per benchmark and a log
#   OUT=dir PYTHON=python3.12 bash bench/gpu.sh
#
# Needs a Python with a CUDA build of PyTorch, Triton, pytest, pybind11, and cmake; nothing is downloaded or installed.
# A step that fails does not stop the others; the exit status says whether all were well.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-out/gpu}
failed=()

step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  if ! timeout "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt"; then
    failed+=("$name")
  fi
}

"$PYTHON" - <<'CHECK' || exit 2
import sys
try:
    import torch
except ModuleNotFoundError:
    sys.exit("error: this Python has no torch; set PYTHON=/path/to/python")
if not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} sees no GPU")
import triton
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
CHECK
mkdir -p "$OUT" || exit 2

step "build: configure" 60 cmake -S . -B build/gpu -DPython_EXECUTABLE="$(command -v "$PYTHON")"
step "build: compile" 180 cmake --build build/gpu --parallel
step "tests" 240 "$PYTHON" -m pytest -q -m gpu
for op in window_attention slerp_noise ema_merge qk_norm_rope_store adaln frame_pack reward_patches; do
  step "bench: $op" 90 "$PYTHON" -m "runtime.bench.$op" --skip-tests --shapes full --json "$OUT/$op.json"
done
step "bench: the line" 120 "$PYTHON" -m runtime.bench --device cuda --dtype bfloat16 --json "$OUT/line.json"

if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "all well; results in $OUT"
