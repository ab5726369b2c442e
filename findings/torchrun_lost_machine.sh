#!/usr/bin/env bash
# torchrun (torch 2.14.1) with --max-restarts 3 does not start again after the loss of a machine.
#
# One would guess that the machines that are left, or a replacement, go on. Of two agents the second is killed with its
# process: the first waits in the rendezvous for join_timeout (600 s by default, 15 s here) and ends with exit code 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'pkill -KILL -f "$folder/train.py" || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
cat >"$folder/train.py" <<'PY'
import os
import sys
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
open(f"{sys.argv[1]}/started-{os.environ['RANK']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}", "w").close()
while True:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.1)
PY
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export GLOO_SOCKET_IFNAME=lo
agent() {
  exec setsid "$folder/venv/bin/torchrun" --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d \
    --rdzv-endpoint "localhost:$port" --rdzv-id lost --rdzv-conf join_timeout=15 --max-restarts 3 \
    "$folder/train.py" "$folder" >"$folder/output-$1" 2>&1
}
agent 0 &
first=$!
# The first one holds the store.
sleep 3
agent 1 &
second=$!
until [ -e "$folder/started-0-0" ] && [ -e "$folder/started-1-0" ]; do sleep 0.1; done
kill -KILL "$second" $(pgrep -P "$second")
seconds=$SECONDS
code=0
wait "$first" || code=$?
echo "the first agent ended with $code after $((SECONDS - seconds)) s; started: $(cd "$folder" && ls -d started-* | xargs)"
test "$code" = 1
grep -q RendezvousTimeoutError "$folder/output-0"
test ! -e "$folder/started-0-1"
