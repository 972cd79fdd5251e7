#!/bin/bash
# Trains on two nodes of eight GPUs under SLURM:   sbatch launch/slurm.sh
# From the checkout, after `pip install -e ".[cuda]"` in .venv. WORKDIR and CONFIG may be set; WORKDIR lies on a disk that all nodes see.
#SBATCH --job-name=diffusion_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
# One task a GPU, as JAX expects it under SLURM; it finds the other tasks by itself.
# SIGTERM comes five minutes before the time is up, or when the job is preempted: all tasks save and end with 143.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" .venv/bin/python main.py --workdir "${WORKDIR:-runs/cosine}" --config "${CONFIG:-experiments/cosine.py}"
status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID" # the same command goes on from the step that was saved
fi
exit "$status"
