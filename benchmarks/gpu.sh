#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in ten minutes on one machine without network, in order of worth:
#
#   benchmarks/gpu_wheels.sh                      # beforehand, where there is a network
#   OUT=results benchmarks/gpu.sh rates           # learning rates, two minutes
#   OUT=results benchmarks/gpu.sh train           # the demo models, packed to $OUT/*.tar
#   OUT=results benchmarks/gpu.sh measure         # the GPU rows of "How fast" and the GPU tests
#   OUT=results benchmarks/gpu.sh --rehearse      # both, on a CPU at toy size
#
# Each step has its own time limit and writes its result when it is done; one that fails does not stop the rest.
# DATA is the folder of the real cells (pbmc3k_raw.h5ad, pbmc_facs_3874.h5ad) that stage 1 reads besides those that ship.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?Set OUT to the folder for the results}
data=${DATA:-.carry}
what=${1:-all}
mkdir -p "$out"
start=$SECONDS
failed=0

# Runs a command for at most so many seconds; its output goes to a log of its own, the last lines of it to the screen.
step() {
  local name=$1 limit=$2 from=$SECONDS
  shift 2
  timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
  local code=$?
  [ "$code" = 0 ] || failed=1
  echo "== $name: exit code $code after $((SECONDS - from)) s, $((SECONDS - start)) s in all"
  tail -n "${LINES_SHOWN:-6}" "$out/$name.log" | cut -c1-400
}

install() {
  [ -d .whl ] || return 0
  local site=/tmp/site
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
  # The package itself is read from here; its version is asked for by name.
  local version info
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  info="$site/maxtoki_toolkit-$version.dist-info"
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: maxtoki_toolkit\nVersion: %s\n' "$version" > "$info/METADATA"
  export PYTHONPATH="$PWD:$site"
}

train() {
  local cells=benchmarks/demo_cells_gpu.yaml minutes=${MINUTES:-4.5} cells_minutes=${CELLS_MINUTES:-2}
  # The cells of the second model are simulated while the first one trains.
  python3 benchmarks/build_demo_cells.py --recipe "$cells" --prepare "${toy[@]}" --work "$work/cells" > "$out/cells_prepare.log" 2>&1 &
  local preparing=$!
  step demo "$(limit "$minutes" 150)" python3 benchmarks/build_demo_model.py --recipe benchmarks/demo_model_gpu.yaml --device "$device" --data "$data" "${toy[@]}" \
    --work "$work/demo" --target "$work/demo_model" $([ "${#toy[@]}" = 0 ] && echo --minutes "$minutes")
  cp "$work/demo/stage2/log.jsonl" "$out/demo_stage2.jsonl" 2> /dev/null
  [ -d "$work/demo_model" ] && tar -cf "$out/demo.tar" -C "$work" demo_model
  wait "$preparing"
  step demo_cells "$(limit "$cells_minutes" 60)" python3 benchmarks/build_demo_cells.py --recipe "$cells" --device "$device" "${toy[@]}" \
    --work "$work/cells" --target "$work/demo_cells" $([ "${#toy[@]}" = 0 ] && echo --minutes "$cells_minutes")
  [ -d "$work/demo_cells" ] && tar -cf "$out/demo_cells.tar" -C "$work" demo_cells
}

# Seconds for so many minutes of training and what comes before and after it.
limit() { awk -v m="$1" -v s="$2" 'BEGIN {printf "%d", 60 * m + s}'; }

measure() {
  step tests 90 python3 -m pytest -q -p no:cacheprovider -o addopts= -o filterwarnings= tests/test_gpu.py
  if [ "${#toy[@]}" = 0 ]; then
    step training 60 python3 benchmarks/training.py --shape 217m --device cuda --n-genes 4000 --batch 8
    step inference 60 python3 benchmarks/inference.py --device cuda --dtype bfloat16 --n-genes 1000 --padded 4096
    step screen 90 python3 benchmarks/screen.py --device cuda --dtype bfloat16 --n-genes 1000 --padded 4096
    step generation 120 python3 benchmarks/generation.py --device cuda --dtype bfloat16 --n-cells 64 --n-genes 1000
    step attention 60 python3 benchmarks/attention.py --device cuda
  else
    step inference 300 python3 benchmarks/inference.py --shape toy --n-genes 60 --padded 256 --n-queries 8
  fi
  tar -cf "$out/results.tar" -C "${BENCHMARK_RESULTS:-benchmarks/results}" .
}

device=cuda toy=() work=${WORK:-runs/gpu}
case $what in
  --rehearse)
    device=cpu toy=(--toy) work=$(mktemp -d)
    export BENCHMARK_RESULTS="$work/results" PYTHONPATH="$PWD"
    trap 'rm -rf "$work"' EXIT
    ;;
esac
# Simulated cells stand in for the real ones.
pretend() {
  data=$work
  python3 - "$work" << 'END'
import sys
import maxtoki_toolkit as mt
for name in ("pbmc3k_raw", "pbmc_facs_3874"):
    mt.datasets.aging_atlas(300, 10, n_genes=500).write_h5ad(f"{sys.argv[1]}/{name}.h5ad")
END
}

export PYTHONUNBUFFERED=1 MAXTOKI_PROGRESS=0 TOKENIZERS_PARALLELISM=false
mkdir -p "$work"
if [ "$what" = --rehearse ]; then pretend; else install; fi
case $what in
  rates) step rates 130 python3 benchmarks/rates.py --device "$device" ;;
  train) train ;;
  measure) measure ;;
  *) train; measure ;;
esac
# Few files come back from such a machine.
(cd "$out" && tar -cf logs.tar ./*.log ./*.jsonl 2> /dev/null; rm -f ./*.log ./*.jsonl)
exit "$failed"
