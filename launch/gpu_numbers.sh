#!/bin/bash
# All of docs/performance.md's and docs/results.md's figures that need a GPU, in one command:   launch/gpu_numbers.sh [FOLDER]
# Benchmarks in bfloat16 beside torch.compile at several batches, start-up and growth in float32; then experiments/cosine.py on
# CIFAR-10 for as long as HOURS says (a run that is interrupted goes on: the same command), its bits/dim, FID and samples.
# Everything goes into FOLDER, runs/gpu unless named. TRAIN holds settings of the training, as
# TRAIN="--config.training.batch_size=512". Run it in an environment with `pip install -e ".[cuda,benchmark]"`; a torch for CPUs
# makes for a comparison with nothing.
set -euo pipefail
folder=${1:-runs/gpu}
mkdir -p "$folder"
# JAX and PyTorch share the GPU, of which JAX would take three quarters at once
for batch in ${BATCHES:-32 128 512}; do
  XLA_PYTHON_CLIENT_PREALLOCATE=false python benchmarks/unet.py --dtype "${DTYPE:-bfloat16}" --batch "$batch" --rounds "${ROUNDS:-3}" \
    --json "$folder/unet_$batch.json" | tee "$folder/unet_$batch.txt"
done
python benchmarks/startup.py --rounds "${ROUNDS:-3}" --json "$folder/startup.json" | tee "$folder/startup.txt"
python benchmarks/growth.py --json "$folder/growth.json" | tee "$folder/growth.txt"

read -ra settings <<<"${TRAIN:---config.model.dtype=bfloat16}"
seconds=$(awk "BEGIN { print int(3600 * ${HOURS:-12}) }")
# SIGTERM saves, and main.py ends with 128 + 15 (timeout says 124): both are a training that used its time
timeout --signal=TERM "$seconds" python main.py --workdir "$folder/cosine" --config experiments/cosine.py "${settings[@]}" ||
  { status=$?; [ "$status" -eq 124 ] || [ "$status" -eq 143 ] || exit "$status"; }
python main.py sample --workdir "$folder/cosine"
python main.py nll --workdir "$folder/cosine" | tee "$folder/nll.txt"
python main.py evaluate --workdir "$folder/cosine" | tee "$folder/evaluate.txt"
