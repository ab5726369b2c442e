#!/usr/bin/env bash
# all_reduce with MAX over gloo (torch 2.14.1) keeps a NaN of rank 0 and drops one of rank 1.
#
# One would guess NaN everywhere, as torch.maximum gives and as SUM does, so that every rank sees that a loss or a gradient
# of one rank is not finite. MIN behaves in the same way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
cat >"$folder/reduce.py" <<'PY'
import math

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
assert math.isnan(torch.maximum(torch.tensor(math.nan), torch.tensor(1.0)))
for name in ("MAX", "MIN", "SUM"):
    for where in (0, 1):
        value = torch.tensor([math.nan if dist.get_rank() == where else 1.0])
        dist.all_reduce(value, op=getattr(dist.ReduceOp, name))
        seen = [torch.zeros(1) for _ in range(2)]
        dist.all_gather(seen, value)
        if dist.get_rank() == 0:
            print(name, "with a NaN on rank", where, "gives", [one.item() for one in seen])
        kept = [math.isnan(one.item()) for one in seen]
        assert kept == [name == "SUM" or where == 0] * 2
dist.destroy_process_group()
PY
GLOO_SOCKET_IFNAME=lo "$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/reduce.py"
