#!/bin/bash
#SBATCH --job-name=healsg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# sbatch docs/slurm.sh NAME [key=value ...]
#
# Two minutes before the time is over, or when the job is preempted, Slurm sends USR1 to what srun has started.
# torchrun passes it on to its processes, which save and stop; the job is queued again, and the same command goes on.

run=$1
shift
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29500" \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=100 \
    train.py name="$run" "$@"
status=$?
if grep -qs '"status": "stopped"' "runs/$run/run.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
