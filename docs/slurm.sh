#!/bin/bash
# Train on several machines under Slurm. Submit from the folder with data/ and runs/, which all machines share, with
# the environment active; what follows the name are flags of `cobra-vlm train`:
#   RUN=runs/cot sbatch docs/slurm.sh --dataset.type llava-cot-100k --model.type cobra-3b \
#     --pretrained_checkpoint cobra+3b --sharding_group_size 8
# Ten minutes before its time is up the job saves its state and queues itself again; docs/cluster.md says more.
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=12:00:00
#SBATCH --signal=B:USR1@600 --requeue --open-mode=append --output=slurm-%j.txt

RUN=${RUN:-runs/slurm-$SLURM_JOB_ID}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a machine take different ports.
PORT=$((15000 + SLURM_JOB_ID % 50000))
# `cobra-vlm fetch` has filled the cache (HF_HOME, HF_HUB_CACHE) on a login node.
export HF_HUB_OFFLINE=1 NCCL_DEBUG="${NCCL_DEBUG:-WARN}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

rm -f "$RUN/stopped.json"
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --shutdown-timeout 540 --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m cobra train "$@" --run_root_dir "$(dirname "$RUN")" --run_id "$(basename "$RUN")" &
STEP=$!
# Never SIGTERM, which makes srun kill its tasks at once.
trap 'kill -USR1 "$STEP"' USR1 TERM
wait "$STEP"; CODE=$?
# A signal ends the waiting, not what is waited for.
while kill -0 "$STEP" 2>/dev/null; do wait "$STEP"; CODE=$?; done
if [ -f "$RUN/stopped.json" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$CODE"
