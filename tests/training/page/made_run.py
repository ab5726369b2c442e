"""Directories of runs as training leaves them, made without a model."""

import json
import math

from scratch import picture

COT = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
ROWS = [
    (4, "four", "coco/4.png", "What is it?", COT.format("A blot")),
    (9, 9, None, "And this?", "no"),
    (11, None, "vg/absent.png", "Describe it.", "A long description of nine words and of more."),
]


def write_metrics(run_dir, steps, first=1, **more):
    """Append lines of metrics, with a validation at every tenth step."""
    with (run_dir / f"{run_dir.name}.jsonl").open("a") as file:
        for step in range(first, steps + 1):
            values = {
                "Step": step,
                "Loss": 2 + math.exp(-step / 50),
                "Loss (Raw)": 2 + math.exp(-step / 50) + 0.1 * math.sin(step),
                "Learning Rate": 2e-5,
                "Step Time": 2.0,
                "Gradient Norm": 1.0,
                "Tokens": 50,
                "Tokens/s": 9000.0,
                "Samples/s": 61.0,
                "Memory (GB)": 61.2,
                "Skipped": 0,
            }
            if step % 10 == 0:
                values |= {"Validation Loss": 2.5 - step / 1e4, "Valid Stages": 0.5}
            named = {f"Finetune/{name}": value for name, value in (values | more).items()}
            file.write(json.dumps(named) + "\n")


def write_answers(run_dir, step, answers, rows=ROWS):
    """Append a validation to `samples.jsonl`."""
    with (run_dir / "samples.jsonl").open("a") as file:
        for (row, row_id, image, question, reference), answer in zip(rows, answers, strict=True):
            line = {"step": step, "row": row, "id": row_id, "image": image, "question": question}
            file.write(json.dumps(line | {"reference": reference, "answer": answer}) + "\n")


def make_run(root, name="run", steps=20, total=40):
    """Make the directory of a run that has done some steps of all; return it."""
    run_dir = root / name
    run_dir.mkdir()
    (root / "images" / "coco").mkdir(parents=True, exist_ok=True)
    picture(1).save(root / "images" / "coco" / "4.png")
    config = {
        "stage": "finetune",
        "seed": 7,
        "model": {"model_id": "cobra+3b", "finetune_learning_rate": 2e-5, "finetune_global_batch_size": 128},
        "dataset": {"dataset_root_dir": str(root), "holdout_components": ["rows.json", "images"]},
    }
    record = {
        "started": "2026-01-02T03:04:05+00:00",
        "command": ["pretrain.py", "--run_id", name, "--stage", "finetune"],
        "code": {"cobra-vlm": "1.0", "commit": None},
        "device": "cuda H100",
        "processes": 1,
        "data": {"path": "rows.json", "rows": 98_000},
        "weights": {"path": None},
        "steps": total,
    }
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "provenance.json").write_text(json.dumps(record))
    write_metrics(run_dir, steps)
    write_answers(run_dir, 10, ["A blot", "Yes.", "A picture."])
    write_answers(run_dir, 20, [COT.format("a blot"), "No", "<CAPTION> c"])
    return run_dir
