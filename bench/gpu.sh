#!/usr/bin/env bash
# What a GPU owner runs: build, the tests that need a GPU, the whole line, every kernel, one summary. Under ten minutes.
#
#   bash bench/gpu.sh                    everything; results in bench/results/<name of the GPU>/
#   bash bench/gpu.sh build line         these groups only: build tests line single realtime kernels fp8 sprites vae rewards tune
#   OUT=dir bash bench/gpu.sh            at most six files in dir: summary.md, report.html, line.json, log.txt,
#                                        steps.tsv and results.tar.gz with everything
#   LIMIT=540                            seconds in all; what would not fit any more is skipped, and said to be
#   TUNE=1                               measures launch configurations too, when time is left
#   PYTHON=python3.12                    a Python with a CUDA build of PyTorch, Triton, pytest and pybind11
#   REHEARSE=1                           the same steps on the CPU with the embedded model, in short
#
# Needs cmake besides; nothing is downloaded or installed. A step that fails does not stop the others. Exit status: 0 all
# well, 1 a step failed or was stopped, 2 there is no GPU or no room for results, 3 nothing failed but steps were skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-540} REHEARSE=${REHEARSE:-} TUNE=${TUNE:-}
GROUPS_ASKED=${*:-build tests line single realtime kernels fp8 sprites vae rewards tune}
KERNELS="window_attention slerp_noise ema_merge qk_norm_rope_store adaln frame_pack reward_patches fp8_quantize"
SUMMARY_SECONDS=15 # kept free at the end
failed=() skipped=()

for group in $GROUPS_ASKED; do
  case $group in build | tests | line | single | realtime | kernels | fp8 | sprites | vae | rewards | tune) ;;
  *) echo "error: no group '$group'; known: build tests line single realtime kernels fp8 sprites vae rewards tune" >&2; exit 2 ;;
  esac
done

name=$("$PYTHON" - "$REHEARSE" <<'CHECK'
import re, sys
try:
    import torch
except ModuleNotFoundError:
    sys.exit("error: this Python has no torch; set PYTHON=/path/to/python")
if sys.argv[1]:
    print("rehearsal")
    sys.exit()
if not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} sees no GPU; REHEARSE=1 runs the same steps on the CPU")
import triton
gpu = torch.cuda.get_device_name()
print(gpu, "torch", torch.__version__, "triton", triton.__version__, file=sys.stderr)
print(re.sub(r"[^A-Za-z0-9]+", "_", gpu).strip("_"))
CHECK
) || exit 2

# Rows, logs and pages go to ROWS as they are made. A caller's OUT gets the few files above, again after every step, so that
# a run that is cut off has left what it had.
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT" || exit 2
  OUT=$(cd "$OUT" && pwd)
  ROWS=$(mktemp -d) || exit 2
  trap 'rm -rf "$ROWS"' EXIT
else
  OUT=bench/results/$name
  [ -n "$REHEARSE" ] && OUT=out/rehearsal
  mkdir -p "$OUT" || exit 2
  # A run of everything starts afresh; groups that are asked for by name join what is there.
  (($#)) || rm -f "$OUT"/*.{json,log,html,md,tsv,txt}
  OUT=$(cd "$OUT" && pwd) ROWS=$OUT
fi
touch "$ROWS/log.txt" "$ROWS/steps.tsv"

publish() {
  [ "$ROWS" = "$OUT" ] && return
  local file
  for file in summary.md report.html line.json log.txt steps.tsv; do
    [ -f "$ROWS/$file" ] && cp "$ROWS/$file" "$OUT/$file"
  done
  tar -czf "$OUT/results.tar.gz.part" -C "$ROWS" . && mv "$OUT/results.tar.gz.part" "$OUT/results.tar.gz"
}

note() { # note NAME OUTCOME SECONDS
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$ROWS/steps.tsv"
  echo "== $1: $2 ($3 s)" | tee -a "$ROWS/log.txt"
}

asked() { [[ " $GROUPS_ASKED " == *" $1 "* ]]; }

step() { # step NAME NEEDED MOST COMMAND...: not begun with less than NEEDED seconds left, stopped after MOST
  local name=$1 needed=$2 most=$3 began=$SECONDS left=$((LIMIT - SUMMARY_SECONDS - SECONDS)) status log
  shift 3
  if ((left < needed)); then
    skipped+=("$name")
    note "$name" "skipped: $left s left, wants $needed" 0
    return 1
  fi
  ((most > left)) && most=$left
  echo "== $name" | tee -a "$ROWS/log.txt"
  log=${name//[^a-z0-9_]/-}
  log=$ROWS/${log//--/-}.log
  timeout --kill-after=5 "$most" "$@" >"$log" 2>&1
  status=$?
  tail -n 40 "$log" | tee -a "$ROWS/log.txt"
  case $status in
  0) note "$name" ok $((SECONDS - began)) ;;
  124 | 137) failed+=("$name") && note "$name" "stopped after $most s" $((SECONDS - began)) ;;
  *) failed+=("$name") && note "$name" "failed, status $status" $((SECONDS - began)) ;;
  esac
  publish
  return $status
}

absent() { # absent NAME WHY
  skipped+=("$1")
  note "$1" "skipped: $2" 0
}

line() { # line NAME NEEDED MOST OPTIONS...: one result of the line in NAME.json
  local name=$1 needed=$2 most=$3
  shift 3
  step "line: $name" "$needed" "$most" "$PYTHON" -m runtime.bench "$@" --json "$ROWS/$name.json"
}

full=(--preset wan-1.3b --random-weights --device cuda --precision bf16)
fast=(--preset realtime --random-weights --device cuda)
small=(--preset sprites --device cuda --precision bf16)
one=(--seconds 5 --repeats 1)
rows=(--device cuda --shapes full --samples 20)
tests=(-m gpu)
if [ -n "$REHEARSE" ]; then
  full=(--preset sprites) fast=(--preset sprites) small=(--preset sprites)
  one=(--seconds 1 --repeats 1 --warmups 0)
  rows=(--device cpu --shapes embedded --samples 5 --threads 1)
  tests=(-m gpu --collect-only)
fi

if asked build; then
  if [ -n "$REHEARSE" ]; then
    absent build "the rehearsal runs what is built"
  else
    step "build: configure" 10 60 cmake -S . -B build/gpu -DPython_EXECUTABLE="$(command -v "$PYTHON")"
    step "build: compile" 10 180 cmake --build build/gpu --parallel
  fi
fi
asked tests && step "tests" 20 180 "$PYTHON" -m pytest -q -p no:cacheprovider "${tests[@]}"
asked line && line line 60 260 "${full[@]}" "${one[@]}" --against released eager --report "$ROWS/report.html"
asked single && line single 30 90 "${full[@]}" "${one[@]}" --policy single --against none
asked realtime && line realtime 30 90 "${fast[@]}" "${one[@]}" --against none
if asked kernels; then
  for op in $KERNELS; do
    step "kernel: $op" 10 45 "$PYTHON" -m "runtime.bench.$op" --skip-tests "${rows[@]}" --json "$ROWS/kernel-$op.json"
  done
fi
if asked fp8; then
  if [ -n "$REHEARSE" ]; then
    absent "line: fp8" "8-bit products are a GPU's"
  else
    line fp8 40 120 "${full[@]}" "${one[@]}" --precision fp8 --against none
  fi
fi
if asked sprites; then
  line sprites 15 60 "${small[@]}" "${one[@]}" --against released
  line sprites-wide 10 40 "${small[@]}" "${one[@]}" --expansions 4 --against none
fi
asked vae && step "vae" 15 90 "$PYTHON" -m runtime.bench.vae --skip-tests "${rows[@]}" --json "$ROWS/vae.json"
if asked rewards; then
  # The first asks every installed library whether it runs on this GPU; its log holds the answers in words.
  step "engines" 10 90 "$PYTHON" -m runtime.bench.engines --json "$ROWS/engines.json"
  step "sharing" 30 90 "$PYTHON" -m runtime.bench.sharing "${rows[@]:0:2}" --budget-ms 4000
  step "reward graphs" 30 150 "$PYTHON" -m runtime.bench.reward_graphs --skip-tests "${rows[@]}" --json "$ROWS/reward-graphs.json"
fi
if asked tune && [ -n "$TUNE" ]; then
  for op in $KERNELS; do
    step "tune: $op" 30 120 "$PYTHON" -m runtime.bench.tune "$op" --out "$ROWS/tuned-$op.json"
  done
fi

if ! timeout "$SUMMARY_SECONDS" "$PYTHON" -m runtime.bench.summary "$ROWS" -o "$ROWS/summary.md"; then
  failed+=(summary)
fi
publish
((${#skipped[@]})) && printf 'skipped: %s\n' "${skipped[@]}"
((${#failed[@]})) && printf 'failed: %s\n' "${failed[@]}"
echo "$SECONDS s; results in $OUT"
((${#failed[@]})) && exit 1
((${#skipped[@]})) && exit 3
exit 0
