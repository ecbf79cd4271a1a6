#!/usr/bin/env bash
# What only a GPU can prove, in one go: the tests marked gpu, then training speed by precision and batch, then every
# loader side by side, then a short run per loader and precision. Results go to a folder, as JSON, a plot and logs.
#
#   benchmarks/gpu_suite.sh [RESULTS_FOLDER]     PYTHON=python3 picks the interpreter
#   DISTCXR_NIH_ROOT=/path/to/nih                real images for loaders and short runs; synthetic ones without it
#   LOADERS="--image-sizes 224 --ranks 1"        arguments for benchmarks/loaders.py; --quick takes a minute
#   BATCHES=2 WINDOW=1 STEPS=2 IMAGES=200        small values try the suite itself, on a machine without a GPU, too
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-benchmarks/results/$(date +%Y-%m-%d_%H-%M-%S)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-.venv/bin/python}
read -ra batches <<<"${BATCHES:-64 128 256 512}"
read -ra loader_arguments <<<"${LOADERS:-}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

step() { # NAME COMMAND...: run it, keep its log, go on when it fails
  local name=$1
  shift
  echo "== $name"
  if "$@" >"$out/$name.log" 2>&1; then
    tail -n 3 "$out/$name.log"
  else
    failed=1
    tail -n 15 "$out/$name.log"
    echo "FAILED: $name, see $out/$name.log"
  fi
}

precisions="bf16 fp16 no"
if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv" 2>/dev/null; then
  echo "no GPU: this proves only that the suite runs" | tee "$out/gpu.csv"
  precisions="bf16 no"
fi
versions="import torch, torchvision, accelerate; print(torch.__version__, torchvision.__version__, accelerate.__version__)"
"$python" -c "$versions" >"$out/versions.txt"

step tests_gpu "$python" -m pytest -m gpu -q -p no:cacheprovider
step train_step "$python" benchmarks/train_step.py recipes/densenet121.yaml --batches "${batches[@]}" \
  --steps "${WINDOW:-20}" --json "$out/train_step.json"

root=${DISTCXR_NIH_ROOT:-}
if [ -z "$root" ]; then
  root=$out/phantom
  step phantom "$python" -m distcxr.cli phantom "$root" --images "${IMAGES:-1200}" --size 1024
fi
step loaders "$python" benchmarks/loaders.py recipes/densenet121.yaml --root "$root" "${loader_arguments[@]}" \
  --json "$out/loaders.json" --plot "$out/loaders.png"
loaders=torch
"$python" -c "import nvidia.dali" 2>/dev/null && loaders="torch dali"
for loader in $loaders; do
  for precision in $precisions; do
    run=run_${loader}_${precision}
    step "$run" "$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no \
      --dynamo_backend no launch.py recipes/densenet121.yaml "data.root=$root" data.missing=skip model.weights=none \
      "data.loader=$loader" "train.precision=$precision" "train.global_batch_size=${batches[0]}" \
      "train.max_steps=${STEPS:-12}" logging.every=4st "output=$out/$run"
    rm -rf "$out/$run/checkpoints"
  done
done
# One GPU fits no exchange: these two figures are assumed, and its predictions with them.
step scaling "$python" benchmarks/scaling.py recipes/densenet121.yaml --root "$root" --batch "${batches[0]}" \
  --node-latency-us 3 --node-bandwidth-gbs 300 --json "$out/scaling.json"
if [ "$root" = "$out/phantom" ]; then rm -rf "$root"; fi
exit $failed
