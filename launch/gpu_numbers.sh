#!/bin/bash
# The figures that need a GPU, each part within four minutes on one H100:   launch/gpu_numbers.sh PART [FOLDER]
#   train    a training step beside torch.compile
#   sample   main.py sample by 50 DDIM steps; an evaluation beside torch.compile
#   startup  main.py train: seconds to the first step, from nothing and from the compilation cache; then images/s
#   profile  a training step's and an evaluation's time by kind of kernel
#   all      these four, other batches, growth, and experiments/cosine.py on CIFAR-10 for HOURS (12), its bits/dim, FID and samples: the
#            same command goes on where it was interrupted
# Of the paper's CIFAR-10 network in bfloat16, batch 256. Everything goes into FOLDER, runs/gpu unless named: JSON, text and the
# compilation cache. What is measured is written as it comes; a part that takes longer than LIMIT seconds (230) is ended.
# NETWORK, BATCH, DTYPE, ROUNDS, TURN (seconds), STEPS (profiled), SAMPLES, SAMPLE_BATCH, LOG_EVERY and LINES_OF_LOG (of startup's log) may be
# set, as may DATA, a folder of PNG files or an .npz of `images`, in place of a prepared CIFAR-10, and TRAIN, settings of the long
# training, as in TRAIN="--config.training.batch_size=512". Run it from the checkout, in an environment with
# `pip install -e ".[cuda,benchmark]"`; a torch for CPUs makes for a comparison with nothing.
set -euo pipefail
part=${1:-} folder=${2:-runs/gpu} limit=${LIMIT:-230}
case $part in
train | sample | startup | profile | all) ;;
*)
  echo "error: the part must be train, sample, startup, profile or all, not '$part'" >&2
  exit 2
  ;;
esac
mkdir -p "$folder"
folder=$(realpath "$folder")
setting=(--network "${NETWORK:-paper}" --dtype "${DTYPE:-bfloat16}")
batch=(--batch "${BATCH:-256}")
turns=(--rounds "${ROUNDS:-2}" --seconds "${TURN:-3}")
export JAX_COMPILATION_CACHE_DIR="$folder/cache"

measure() { # NAME COMMAND...: within what is left of the part's time, its text in NAME.txt
  local name=$1 left=$((limit - SECONDS)) status=0
  shift
  [ "$left" -gt 0 ] || left=1
  timeout --kill-after=5 "$left" python "$@" 2>&1 | tee "$folder/$name.txt" || status=${PIPESTATUS[0]}
  [ "$status" -ne 124 ] || echo "error: $part took longer than $limit s; what was measured is in $folder" >&2
  return "$status"
}

beside() { # WORK NAME: beside PyTorch, which shares the GPU; JAX would take three quarters of it at once
  XLA_PYTHON_CLIENT_PREALLOCATE=false measure "$2" benchmarks/unet.py "${setting[@]}" "${batch[@]}" "${turns[@]}" \
    --only "$1" --channels-last --json "$folder/$2.json"
}

train() { beside "training step" train; }
sample() {
  measure sample benchmarks/commands.py sample --folder "$folder" "${setting[@]}" --batch "${SAMPLE_BATCH:-500}" --num "${SAMPLES:-5000}"
  beside evaluation evaluation
}
startup() { # its own cache, empty at first
  measure startup benchmarks/commands.py startup --folder "$folder" "${setting[@]}" "${batch[@]}" \
    --log-every "${LOG_EVERY:-50}" --lines "${LINES_OF_LOG:-4}"
}
profile() {
  local what
  for what in evaluation "training step"; do
    measure "profile_${what// /_}" benchmarks/kernels.py "${setting[@]}" "${batch[@]}" --what "$what" --steps "${STEPS:-5}" \
      --json "$folder/profile_${what// /_}.json"
  done
}

if [ "$part" != all ]; then
  "$part"
  exit
fi
limit=100000
train
sample
startup
profile
for size in ${BATCHES:-32 128 512}; do
  XLA_PYTHON_CLIENT_PREALLOCATE=false measure "unet_$size" benchmarks/unet.py "${setting[@]}" --batch "$size" "${turns[@]}" \
    --json "$folder/unet_$size.json"
done
measure growth benchmarks/growth.py --json "$folder/growth.json"

read -ra settings <<<"${TRAIN:---config.model.dtype=bfloat16}"
seconds=$(awk "BEGIN { print int(3600 * ${HOURS:-12}) }")
# SIGTERM saves, and main.py ends with 128 + 15 (timeout says 124): both are a training that used its time
timeout --signal=TERM "$seconds" python main.py --workdir "$folder/cosine" --config experiments/cosine.py "${settings[@]}" ||
  { status=$?; [ "$status" -eq 124 ] || [ "$status" -eq 143 ] || exit "$status"; }
python main.py sample --workdir "$folder/cosine"
python main.py nll --workdir "$folder/cosine" | tee "$folder/nll.txt"
python main.py evaluate --workdir "$folder/cosine" | tee "$folder/evaluate.txt"
