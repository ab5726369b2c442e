"""A part from outside the package follows every step of a run, and its numbers are logged."""

import json

from few_steps import train, write_colours


def test_its_numbers_are_logged(tmp_path, extend):
    parts = [extend("weight_drift").WeightDrift()]
    run = train(write_colours(tmp_path), "--pretrained_checkpoint", "cobra-tiny", parts=parts)
    lines = [json.loads(line) for line in (run / "few.jsonl").read_text().splitlines()]
    drift = [line["Finetune/Weight Drift"] for line in lines]
    assert drift[0] == 0 < drift[1] < drift[2]
