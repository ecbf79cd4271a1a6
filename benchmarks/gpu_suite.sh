#!/usr/bin/env bash
# What only a GPU can prove, in one go: the tests marked gpu, then training speed by precision and batch, then a short
# run per loader and precision. Results go to a folder, as JSON and logs.
#
#   benchmarks/gpu_suite.sh [RESULTS_FOLDER]        PYTHON=python3 picks the interpreter
#   DISTCXR_NIH_ROOT=/path/to/nih                   real images for the short runs; synthetic ones without it
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/$(date +%Y-%m-%d_%H-%M-%S)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

step() { # NAME COMMAND...: run it, keep its log, go on when it fails
  local name=$1
  shift
  echo "== $name"
  if "$@" >"$out/$name.log" 2>&1; then tail -n 3 "$out/$name.log"; else
    failed=1
    echo "FAILED: $name (see $out/$name.log)"
    tail -n 15 "$out/$name.log"
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv" 2>/dev/null || echo "no GPU" >"$out/gpu.csv"
"$python" -c "import torch, torchvision, accelerate; print(torch.__version__, torchvision.__version__, accelerate.__version__)" \
  >"$out/versions.txt"

step tests_gpu "$python" -m pytest -m gpu -q -p no:cacheprovider
step train_step "$python" benchmarks/train_step.py recipes/densenet121.yaml --batches ${BATCHES:-64 128 256 512} \
  --json "$out/train_step.json"

root=${DISTCXR_NIH_ROOT:-}
if [ -z "$root" ]; then
  root=$out/phantom
  step phantom "$python" -m distcxr.cli phantom "$root" --images 1200 --size 1024
fi
loaders=torch
"$python" -c "import nvidia.dali" 2>/dev/null && loaders="torch dali"
for loader in $loaders; do
  for precision in bf16 fp16 no; do
    step "run_${loader}_${precision}" "$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 \
      --mixed_precision no --dynamo_backend no launch.py recipes/densenet121.yaml "data.root=$root" data.missing=skip \
      model.weights=none "data.loader=$loader" "train.precision=$precision" train.global_batch_size=64 \
      train.max_steps=${STEPS:-12} logging.every=4st "output=$out/run_${loader}_${precision}"
    rm -rf "$out/run_${loader}_${precision}/checkpoints"
  done
done
[ "$root" = "$out/phantom" ] && rm -rf "$root"
exit $failed
