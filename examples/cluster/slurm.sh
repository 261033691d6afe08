#!/bin/bash
# One training on two machines of a SLURM cluster with four GPUs each:
#
#     sbatch slurm.sh imagenet-tiny /datasets/imagenet /shared/runs/imagenet-tiny
#
# The run folder must be on a disk that both machines see. SLURM asks a job to stop two minutes before
# its time ends; the training is then saved, and the same command continues it.
#SBATCH --job-name=prenas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

recipe=$1
data=$2
run=$3
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc_per_node=4 \
    --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first:29500" \
    --max-restarts=3 \
    -m prenas run "$recipe" --data "$data" --out "$run"
