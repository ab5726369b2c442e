#!/bin/bash
# Train on several machines without a scheduler. Start it on each of them, in a folder with data/ and runs/ that all
# share, with the environment active; what follows the name are flags of `cobra-vlm train`:
#   NODES=2 GPUS=8 HEAD=<FIRST_MACHINE> bash docs/torchrun.sh --dataset.type llava-cot-100k --model.type cobra-3b \
#     --pretrained_checkpoint cobra+3b --sharding_group_size 8
# Processes that fail start again from the last state; after the loss of a machine give the same commands again.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" NCCL_DEBUG="${NCCL_DEBUG:-WARN}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --nnodes "${NODES:?}" --nproc-per-node "${GPUS:?}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:?}:${PORT:-29500}" --rdzv-id cobra \
  --rdzv-conf "join_timeout=${JOIN_TIMEOUT:-600}" \
  --shutdown-timeout 540 --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m cobra train "$@"
