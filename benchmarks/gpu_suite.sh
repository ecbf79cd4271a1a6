#!/usr/bin/env bash
# What only a GPU can prove, in one go: the tests marked gpu, then PNGs decoded on it stage by stage and beside training,
# training speed by precision and batch, every loader side by side, a short run per loader and precision, and scaling.
# Results go to a folder, as JSON, a plot and logs.
#
#   benchmarks/gpu_suite.sh [RESULTS_FOLDER]     PYTHON=python3 picks the interpreter
#   DISTCXR_NIH_ROOT=/path/to/nih                real images for loaders and short runs; synthetic ones without it
#   PARTS="tests_gpu decode"                     some of: tests_gpu decode train_step loaders runs scaling (default: all)
#   LOADERS="--image-sizes 224 --ranks 1"        arguments for benchmarks/loaders.py; --quick takes a minute
#   DECODE="--streams 64 256"                    arguments for benchmarks/gpu_decode.py
#   BATCHES=2 WINDOW=1 STEPS=2 IMAGES=200 SIZE=64  small values try the suite itself, on a machine without a GPU, too
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-benchmarks/results/$(date +%Y-%m-%d_%H-%M-%S)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-.venv/bin/python}
read -ra batches <<<"${BATCHES:-64 128 256 512}"
read -ra loader_arguments <<<"${LOADERS:-}"
read -ra decode_arguments <<<"${DECODE:-}"
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

part() { # NAME: whether it is asked for
  [[ " ${PARTS:-tests_gpu decode train_step loaders runs scaling} " == *" $1 "* ]]
}

precisions="bf16 fp16 no" device=cuda
if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv" 2>/dev/null; then
  echo "no GPU: this proves only that the suite runs" | tee "$out/gpu.csv"
  precisions="bf16 no" device=cpu
fi
versions="import torch, torchvision, accelerate; print(torch.__version__, torchvision.__version__, accelerate.__version__)"
"$python" -c "$versions" >"$out/versions.txt"

if part tests_gpu; then step tests_gpu "$python" -m pytest -m gpu -q -p no:cacheprovider --continue-on-collection-errors; fi

root=${DISTCXR_NIH_ROOT:-}
if [ -z "$root" ] && { part decode || part loaders || part runs || part scaling; }; then
  root=$out/phantom
  step phantom "$python" -m distcxr.cli phantom "$root" --images "${IMAGES:-1200}" --size "${SIZE:-1024}"
fi
if part decode; then
  step gpu_decode "$python" benchmarks/gpu_decode.py recipes/densenet121.yaml --root "$root" --batch "${batches[0]}" \
    --steps "${WINDOW:-40}" "${decode_arguments[@]}" --json "$out/gpu_decode.json"
fi
if part train_step; then
  step train_step "$python" benchmarks/train_step.py recipes/densenet121.yaml --batches "${batches[@]}" \
    --steps "${WINDOW:-20}" --json "$out/train_step.json"
fi
if part loaders; then
  step loaders "$python" benchmarks/loaders.py recipes/densenet121.yaml --root "$root" "${loader_arguments[@]}" \
    --json "$out/loaders.json" --plot "$out/loaders.png"
fi

run() { # NAME KEY=VALUE...: a short training run; it has to end well
  local name=$1
  shift
  step "$name" "$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no \
    --dynamo_backend no launch.py recipes/densenet121.yaml "data.root=$root" data.missing=skip model.weights=none \
    "train.global_batch_size=${batches[0]}" "train.max_steps=${STEPS:-12}" logging.every=4st "output=$out/$name" "$@"
  rm -rf "$out/$name/checkpoints"
}
if part runs; then
  loaders=torch
  "$python" -c "import nvidia.dali" 2>/dev/null && loaders="torch dali"
  for precision in $precisions; do
    for loader in $loaders; do run "run_${loader}_$precision" "data.loader=$loader" "train.precision=$precision"; done
  done
  step pack "$python" -m distcxr.cli pack recipes/densenet121.yaml "data.root=$root" data.missing=skip \
    "data.pack.path=$out/pack"
  for loader in $loaders; do
    run "run_pack_$loader" data.source=pack "data.pack.path=$out/pack" "data.loader=$loader"
  done
  rm -rf "$out/pack"
  step cache "$python" -m distcxr.cli cache recipes/densenet121.yaml "data.root=$root" data.missing=skip \
    "data.cache.path=$out/cache"
  for place in host $([ $device = cpu ] || echo device); do
    run "run_cache_$place" data.loader=cache "data.cache.path=$out/cache" "data.cache.resident=$place"
  done
  rm -rf "$out/cache"
  if [ $device = cuda ]; then
    for inflate in gpu cpu; do run "run_gpu_$inflate" data.loader=gpu "data.gpu.inflate=$inflate"; done
  fi
fi
if part scaling; then
  # One GPU fits no exchange: these two figures are assumed, and its predictions with them.
  step scaling "$python" benchmarks/scaling.py recipes/densenet121.yaml --root "$root" --batch "${batches[0]}" \
    --node-latency-us 3 --node-bandwidth-gbs 300 --json "$out/scaling.json"
fi
if [ "$root" = "$out/phantom" ]; then rm -rf "$root"; fi
exit $failed
