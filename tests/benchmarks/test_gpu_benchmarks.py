"""Benchmarks of a GPU, without one: their counts, and the run in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *flags: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / script), *flags]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_a_run_without_a_gpu_goes_through_the_whole_program(tmp_path):
    shown = run("run.py", "--dry_run", "true", "--out", str(tmp_path / "page.md"))
    rows = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    values = {row["name"]: row["value"] for row in rows}
    assert "interpreter" in values["device"] and values["decoder"] == "Decoder"
    assert values["same bits twice, (1, 9, 8) float32"] == "yes"
    assert values["largest error of gradients, (1, 9, 8) float32"] < 2e-6
    assert values["largest error of outputs, (1, 9, 8) bfloat16"] < 1.6e-2
    assert len((tmp_path / "page.md").read_text().splitlines()) == len(rows) + 2


COUNTS = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "benchmarks" / "gpu")!r})
import torch
from counts import MambaConfig, count_decode, count_layer, kept_tensors
from cobra.models.mamba.ops import triton_ops, use_op
config = MambaConfig(d_model=2560, n_layer=64, vocab_size=50_280)
with use_op(triton_ops):
    decode = [count_decode(config, dtype) for dtype in (torch.float32, torch.bfloat16)]
    print(json.dumps([decode, count_layer(config), kept_tensors(config, "scan"), kept_tensors(config, "none")]))
"""


def test_launches_and_kept_bytes_of_cobra_3b_stay_few():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", COUNTS], env=environment, check=True, capture_output=True, text=True)
    decode, layer, scan, whole = json.loads(done.stdout.splitlines()[-1])
    assert decode == [6, 6]
    assert layer <= 29
    assert scan <= 4.6 and whole <= 6.6
