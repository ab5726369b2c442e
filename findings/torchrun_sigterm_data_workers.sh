#!/usr/bin/env bash
# torchrun (torch 2.14.1) sends SIGTERM to the process group of each of its processes, data workers included.
#
# One would guess that the training process alone gets the signal and may finish its step. The DataLoader's workers get it
# too and die by it, and the training process, which has a handler and waits for its next batch, meets a RuntimeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
cat >"$folder/train.py" <<'PY'
import signal
import sys
import time

from torch.utils.data import DataLoader

asked = []


class Rows:
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        for number, _ in enumerate(DataLoader(Rows(), batch_size=4, num_workers=2)):
            if number == 3:
                open(sys.argv[1] + "/ready", "w").close()
            if asked and number > 20:
                result = "went on"
                break
    except RuntimeError as error:
        result = str(error)
    open(sys.argv[1] + "/result", "w").write(result)
PY
"$folder/venv/bin/torchrun" --standalone --nproc-per-node 1 "$folder/train.py" "$folder" >"$folder/output" 2>&1 &
torchrun=$!
until [ -e "$folder/ready" ]; do sleep 0.1; done
kill -TERM "$torchrun"
wait "$torchrun" || true
echo "the training process saw: $(head -c 200 "$folder/result")"
grep -q "DataLoader worker" "$folder/result"
