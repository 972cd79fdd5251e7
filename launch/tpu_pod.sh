#!/bin/bash
# Trains on a TPU pod slice of Google Cloud:   TPU=name ZONE=us-central2-b BUCKET=bucket launch/tpu_pod.sh
# Runs on your own machine, with gcloud set up. Every host mounts the bucket, in which the run lies, and starts the same command;
# JAX finds the hosts by itself. Run it again after a preemption: the run goes on from its newest checkpoint.
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${BUCKET:?a storage bucket for the run}"
REPOSITORY=${REPOSITORY:?the address of this repository, for git clone}
CONFIG=${CONFIG:-experiments/imagenet64.py}
everywhere() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command="$1"; }

everywhere "set -e
  [ -d diffusion_jax ] || git clone --depth 1 '$REPOSITORY' diffusion_jax
  cd diffusion_jax
  # the hosts' own Python may be older than 3.11
  [ -x ~/.local/bin/uv ] || python3 -m pip install -q --user uv
  [ -d .venv ] || ~/.local/bin/uv venv -q -p 3.12 .venv
  ~/.local/bin/uv pip install -q -p .venv/bin/python -e '.[tpu]'
  # without caches, since all hosts write; with renames of folders, by which a checkpoint is completed
  mkdir -p ~/bucket && (mountpoint -q ~/bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 --stat-cache-ttl=0 \
    --type-cache-ttl=0 '$BUCKET' ~/bucket)"
everywhere "cd diffusion_jax && .venv/bin/python main.py --workdir ~/bucket/runs/\$(basename '$CONFIG' .py) --config '$CONFIG' \
  --config.data.source.folder=\$HOME/bucket/tensorflow_datasets"
