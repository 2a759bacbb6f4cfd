#!/usr/bin/env bash
# Everything that headrace says about one Hopper GPU, measured again: tests, kernels, steps, served streams.
#
#   bash bench/hopper.sh setup check serve        some parts, in this order
#   bash bench/hopper.sh all                      every part
#
# Each part ends within 10 minutes, prints a short summary last, and writes its JSON and logs into $OUT.
#
#   setup     a virtual environment in .venv with headrace and what its tests need (needs a network)
#   check     kernel, engine and sampling tests on the GPU: twins, parity, graph = eager, poison, synchronization
#   tune      tilings of the few-row matrix products and of attention; the tables that headrace ships
#   kernels   every kernel beside its twin and a library, with its share of the memory or compute floor
#   step      steps of the engine by rows and context, without a server, beside their floor
#   start     exec to ready to first token
#   serve     streams of a running server over websocket and SSE, cell by cell beside must, aim and peers
#   sanitize  compute-sanitizer over kernel tests: bad accesses, races
#   soak      a million tokens of mixed load with aborts, and not one page leaked
#
# Settings, from the environment:
#   HEADRACE_PYTHON  an interpreter that has headrace and what it needs; without: .venv, made by `setup`
#   OUT              where results go [/tmp/headrace-hopper]
#   MODELS           shapes to run ["qwen3-0.6b llama-3.1-8b"]
#   WEIGHTS          random: made on the GPU; checkpoint: written into the folders of the shapes first [random]
#   SHAPES           where those folders are kept [/tmp/headrace-shapes]
#   TESTS            what `check` runs ["tests/kernels tests/gpu tests/engine tests/sampling"]
#   CELLS            cells of `serve` [those that bench/bars.py knows]
#   TRANSPORTS       of `serve` ["ws-responses sse-chat"]
#   WORKERS          client processes [8]
#   REPEATS          measured runs of a short cell [2]; long ones run once
#   PART_SECONDS     what one part may take [570]
#   TOOLS, JOBS      of compute-sanitizer, and how many run side by side ["memcheck racecheck", 8]
#   WARM_SECONDS     what the start of a server may spend on capturing graphs [60]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

OUT=${OUT:-${TMPDIR:-/tmp}/headrace-hopper}
OUT=$(mkdir -p "$OUT" && cd "$OUT" && pwd) || exit 1
SHAPES=${SHAPES:-${TMPDIR:-/tmp}/headrace-shapes}
WEIGHTS=${WEIGHTS:-random}
MODELS=${MODELS:-qwen3-0.6b llama-3.1-8b}
TRANSPORTS=${TRANSPORTS:-ws-responses sse-chat}
REPEATS=${REPEATS:-2}
PART_SECONDS=${PART_SECONDS:-570}
WARM_SECONDS=${WARM_SECONDS:-60}
PY=${HEADRACE_PYTHON:-$PWD/.venv/bin/python}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
server=
exec 3>&1  # what is said here is read, whatever log a command writes

say() { printf 'hopper: %s\n' "$*"; }
headrace() { "$PY" -P -m headrace.clients.cli "$@"; }
left() { echo $((PART_SECONDS - (SECONDS - begun))); }
# No command outlives its part: what is still running then is ended, and said to be.
within() { # MOST COMMAND...
  local most=$1 rest; shift
  rest=$(left); ((most < rest)) || most=$rest
  ((most > 0)) || { say "no time left for: $*" >&3; return 124; }
  timeout --kill-after=10 "$most" "$@"
  rest=$?
  ((rest != 124 && rest != 137)) || say "ended after $most s: ${*:4}" >&3
  return "$rest"
}
bench() { # MOST NAME ARGUMENTS...
  local most=$1; shift
  within "$most" "$PY" -P -m headrace.clients.cli bench "$@"
}
shape() { # MODEL: its folder, made once
  local folder=$SHAPES/$WEIGHTS/$1 without=()
  [ "$WEIGHTS" = random ] && without=(--no-weights)
  if [ ! -f "$folder/done" ]; then
    "$PY" -P -m headrace.bench.shapes "$1" "$folder" "${without[@]}" >&2 && touch "$folder/done" || return 1
  fi
  echo "$folder"
}

stop_server() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$server" 2>/dev/null || break; sleep 0.2; done
  kill -KILL "$server" 2>/dev/null && say "the server did not end within 20 s of SIGTERM"
  wait "$server" 2>/dev/null
  server=
}
trap stop_server EXIT
trap 'exit 130' INT TERM

# Half of the cores for the client, the rest for the server, where there are enough of both.
split_cores() {
  "$PY" -c 'import os
cores = sorted(os.sched_getaffinity(0)); half = len(cores) // 2
if half >= 6: print(",".join(map(str, cores[:-half])), ",".join(map(str, cores[-half:])))'
}

setup() {
  if [ -n "${HEADRACE_PYTHON:-}" ]; then say "HEADRACE_PYTHON is set: nothing to install"; return 0; fi
  HF_HUB_OFFLINE='' make .venv/test.stamp || return 1
  "$PY" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.cuda.get_device_name())'
}

check() {
  local workers=() status
  "$PY" -P -c 'import xdist' 2>/dev/null && workers=(-n "${CHECK_WORKERS:-8}")
  # shellcheck disable=SC2086
  within "$PART_SECONDS" "$PY" -P -m pytest -q -p no:cacheprovider "${workers[@]}" --junitxml="$OUT/check.xml" \
    ${TESTS:-tests/kernels tests/gpu tests/engine tests/sampling} >"$OUT/check.log" 2>&1
  status=$?
  grep -E '^(FAILED|ERROR)' "$OUT/check.log" | cut -c1-300 | head -40
  tail -n 1 "$OUT/check.log"
  return "$status"
}

tune() {
  bench 280 tune --seconds 240 --out "$OUT/tuning.json" >"$OUT/tune.log" 2>&1; local first=$?
  grep -v '^{' "$OUT/tune.log" | cut -c1-140 | tail -n 25
  bench 280 tune_attention --seconds 240 --out "$OUT/tuning_attention.json" >"$OUT/tune_attention.log" 2>&1
  local second=$?
  grep -v '^{' "$OUT/tune_attention.log" | cut -c1-140 | tail -n 40
  return $((first | second))
}

kernels() {
  bench "$PART_SECONDS" kernels --out "$OUT/kernels.json" >"$OUT/kernels.log" 2>&1; local status=$?
  grep -v '^{' "$OUT/kernels.log" | cut -c1-150
  return "$status"
}

step() {
  local model status=0
  for model in $MODELS; do
    bench $((PART_SECONDS / 2)) step --shape "$model" --out "$OUT/step_$model.json" >"$OUT/step_$model.log" 2>&1 \
      || status=1
    grep -v '^{' "$OUT/step_$model.log" | cut -c1-150 | tail -n 30
  done
  return "$status"
}

start() {
  local model folder status=0 files=()
  for model in $MODELS; do
    folder=$(shape "$model") || return 1
    bench $((PART_SECONDS / 2)) start "$folder" --repeats 3 --out "$OUT/start_$model.json" -- --weights "$WEIGHTS" \
      >"$OUT/start_$model.log" 2>&1 || { status=1; tail -n 5 "$OUT/start_$model.log" | cut -c1-300; }
    [ -f "$OUT/start_$model.json" ] && files+=("$OUT/start_$model.json")
  done
  bars start "${files[@]}" || status=1
  return "$status"
}

bars() { # NAME FILES...: the table of what was measured
  local name=$1; shift
  (($#)) || { say "$name measured nothing"; return 1; }
  headrace bench bars "$@" --measured --out "$OUT/$name.json" | grep -v '^{'
  return "${PIPESTATUS[0]}"
}

cells_of() {
  if [ -n "${CELLS:-}" ]; then echo "$CELLS"; return; fi
  case $1 in
    llama-*) echo single_128_256 single_1024_128 interfere c64_512_256 prefix_2048_64_32 c256_512_256 ;;
    *) echo single_128_256 c8_512_256 c64_512_256 prefix_2048_64_32 c256_512_256 interfere ;;
  esac
}

# Cells of many tokens run once and without a warm-up of their own: those before them have warmed the server.
settings_of() {
  case $1 in
    c256_*) echo 180 --repeats 1 --no-warmup --requests 1280 ;;
    c64_*) echo 120 --repeats 1 --no-warmup ;;
    interfere) echo 90 --repeats 1 --no-warmup ;;
    *) echo 90 --repeats "$REPEATS" ;;
  esac
}

start_server() { # MODEL CORES: sets server and url
  local folder log=$OUT/serve_$1.log pinned=() begin=$SECONDS
  folder=$(shape "$1") || return 1
  [ -n "$2" ] && command -v taskset >/dev/null && pinned=(taskset -c "$2")
  "${pinned[@]}" "$PY" -P -m headrace.clients.cli serve "$folder" --weights "$WEIGHTS" --port 0 \
    --warm-seconds "$WARM_SECONDS" >"$log" 2>&1 &
  server=$!
  until grep -q '^ready: ' "$log"; do
    if ! kill -0 "$server" 2>/dev/null; then say "the server of $1 ended:"; tail -n 15 "$log"; server=; return 1; fi
    if (($(left) <= 0)); then say "the server of $1 is not ready in time:"; tail -n 5 "$log"; return 1; fi
    sleep 0.2
  done
  url=$(sed -n 's/^ready: //p' "$log" | head -n 1)
  say "$1 is ready after $((SECONDS - begin)) s, of which $(grep -o 'captured .* graphs in .*' "$log" | tail -n 1)"
}

serve() {
  # The tokenizer of random shapes is byte-level: so prompts have exactly the tokens that a cell asks for.
  local prompts=; [ "$WEIGHTS" = random ] && prompts=bytes
  local model cell transport own client status=0 files=() settings out
  read -r own client <<<"$(split_cores)"
  for model in $MODELS; do
    start_server "$model" "${own:-}" || { stop_server; status=1; continue; }
    for cell in $(cells_of "$model"); do
      for transport in $TRANSPORTS; do
        read -ra settings <<<"$(settings_of "$cell")"
        out=$OUT/${model}_${cell}_$transport.json
        rm -f "$out"
        bench "${settings[0]}" serve "$url" --workload "$cell" --transport "$transport" "${settings[@]:1}" \
          ${prompts:+--prompt "$prompts"} --workers "${WORKERS:-8}" ${client:+--cores "$client"} --no-calibration \
          --out "$out" >"${out%.json}.log" 2>&1
        [ -f "$out" ] || { say "$model $cell $transport gave no result:"; tail -n 3 "${out%.json}.log" | cut -c1-300; }
        [ -f "$out" ] && files+=("$out") || status=1
      done
    done
    grep -E 'ERROR|CRITICAL|Traceback|failed' "$OUT/serve_$model.log" | head -n 5 | cut -c1-300
    stop_server
  done
  bars serve "${files[@]}" || status=1
  return "$status"
}

sanitized() { # TOOL FILE: one file of tests under one tool
  local log; log=$OUT/sanitize_$1_$(basename "$2" .py).log
  # torch's caching allocator would hide accesses beyond a tensor.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 within "$PART_SECONDS" compute-sanitizer --tool "$1" --error-exitcode 9 \
    --print-limit 20 "$PY" -P -m pytest -q -p no:cacheprovider "$2" >"$log" 2>&1
  echo "status $?" >>"$log"
}

sanitize() {
  local tool file log status=0 told
  command -v compute-sanitizer >/dev/null || { say "compute-sanitizer is not on the PATH"; return 1; }
  rm -f "$OUT"/sanitize_*.log
  for tool in ${TOOLS:-memcheck racecheck}; do
    for file in ${SANITIZED:-tests/kernels/test_*.py}; do
      while (($(jobs -rp | wc -l) >= ${JOBS:-8})); do wait -n; done
      sanitized "$tool" "$file" &
    done
  done
  wait
  for log in "$OUT"/sanitize_*.log; do
    told=$(grep -oE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$log" | tail -n 1)
    grep -qx 'status 0' "$log" || { status=1; told="${told:-no summary} ($(tail -n 1 "$log"))"; }
    printf '%-58s %-34s %s\n' "$(basename "$log" .log)" "$(grep -oE '[0-9]+ (passed|failed).*' "$log" | tail -n 1)" "$told"
  done
  return "$status"
}

soak() {
  local folder
  folder=$(shape "${SOAK_MODEL:-qwen3-0.6b}") || return 1
  bench "$PART_SECONDS" soak "$folder" --weights "$WEIGHTS" --tokens "${SOAK_TOKENS:-1000000}" \
    --seconds $((PART_SECONDS - 60)) --out "$OUT/soak.json" 2>"$OUT/soak.log" | grep -v '^{'
  return "${PIPESTATUS[0]}"
}

PARTS="setup check tune kernels step start serve sanitize soak"
(($#)) || { sed -n '2,/^set /p' "bench/hopper.sh" | sed -n 's/^# \{0,1\}//p'; exit 2; }
[ "$*" = all ] && set -- $PARTS
for part in "$@"; do
  case " $PARTS " in *" $part "*) ;; *) say "there is no part $part; known: $PARTS"; exit 2 ;; esac
done
failed=()
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw,temperature.gpu \
  --format=csv,noheader
for part in "$@"; do
  begun=$SECONDS
  say "== $part"
  "$part" || failed+=("$part")
  say "== $part took $((SECONDS - begun)) s"
done
packed=$(mktemp) && tar -C "$OUT" --exclude=hopper.tgz -czf "$packed" . && mv "$packed" "$OUT/hopper.tgz" \
  && say "everything is in $OUT/hopper.tgz"
((${#failed[@]} == 0)) || { say "not all is well in: ${failed[*]}"; exit 1; }
