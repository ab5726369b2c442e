"""The demonstration from end to end: make the data, run the three commands of a real fine-tuning, measure answers."""

import os
import shutil
import subprocess
import time
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from cobra.demo.accuracy import AnswerScore, answer_rows, score_answers
from cobra.demo.config import DemoConfig
from cobra.demo.datasets import LlavaCotSummary, write_coco_captions, write_llava_cot, write_question_rows
from cobra.models.load import load
from cobra.util.errors import UserError
from cobra.util.files import read_json, write_json
from cobra.util.lock import LOCK, hold
from cobra.util.program import command_line, program

RUN_ID = "cobra-tiny-cot"
PROCESSES = 2

# In every folder that the demonstration made, and which it may therefore empty.
_MARKER = "made-by-the-demo.json"
_SAMPLES = 3
# Kinds of questions above this p-value are named as not learned.
_SIGNIFICANT = 0.05


class _Demo:
    """The paths of one demonstration and the seconds that its parts took."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.console = Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}
        self.data = config.output_dir / "data"
        self.cot = self.data / "download" / "llava-cot-100k"
        self.captions = self.data / "captions"
        self.questions = self.data / "questions"
        self.run_dir = config.output_dir / RUN_ID
        self.benchmark = config.output_dir / "benchmark"


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run the demonstration and print what each part does.

    Returns:
        What `summary.json` holds: sizes, seconds by part, scores of captions and of answers.

    Raises:
        UserError: A command failed, another demonstration runs in the folder, or the folder holds something that is not
            the demonstration's.
    """
    with hold(config.output_dir, "another demonstration runs"):
        return _run(_Demo(config))


def _run(demo: _Demo) -> dict[str, Any]:
    config = demo.config
    _empty_folder(config)
    cot = _write_data(demo)
    prepare = ["--dataset_root", str(demo.data)]
    _command(demo, "prepare", "Unpack the images, convert and check the rows, report what is wrong with them", prepare)
    _command(demo, "train", "Fine-tune the shipped baseline on four-stage answers, in two processes", _pretrain(demo))
    _command(demo, "benchmark", "Score captions of the held-out images: four variants, one protocol", _benchmark(demo))
    score, samples = _measure(demo)
    metrics = read_json(demo.benchmark / "metrics.json", "the benchmark's result")
    summary = {
        "rows": cot.rows,
        "steps": config.steps,
        "seconds": {name: round(value, 1) for name, value in demo.seconds.items()},
        "captions": {"n": metrics["n"], "variants": metrics["variants"]},
        "answers": score.to_dict(),
    }
    write_json(config.output_dir / "summary.json", summary)
    _report(demo, score, samples)
    return summary


def _empty_folder(config: DemoConfig) -> None:
    """Remove what an earlier demonstration left, and nothing else."""
    folder = config.output_dir
    found = [path for path in folder.iterdir() if path.name != LOCK]
    if found:
        if not (folder / _MARKER).is_file():
            raise UserError(
                f"{folder} holds files that the demonstration did not write and will not touch: choose another "
                "--output_dir, or move them away"
            )
        for path in found:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_json(folder / _MARKER, {"note": "make demo empties this folder when it starts"})


def _write_data(demo: _Demo) -> LlavaCotSummary:
    config, start = demo.config, _start(demo, "data", "Render scenes: training rows as LLaVA-CoT-100k publishes them")
    cot = write_llava_cot(demo.cot, config.rows, config.seed)
    write_coco_captions(demo.captions, config.caption_images, config.seed)
    write_question_rows(demo.questions, config.questions, config.seed)
    defects = ", ".join(f"{count} x {kind}" for kind, count in cot.defects.items())
    demo.console.print(
        f"{cot.rows:,} rows in {demo.cot / 'train.jsonl'}, {cot.images:,} images in {len(cot.parts)} pieces of a zip\n"
        f"with the defects that the original is known for: {escape(defects)}\n"
        f"held out: {config.caption_images} images with five captions each in {demo.captions}, {config.questions} "
        f"questions in {demo.questions}; no training scene shows the same"
    )
    demo.seconds["data"] = time.monotonic() - start
    return cot


def _pretrain(demo: _Demo) -> list[str]:
    config = demo.config
    return [
        *("--dataset.type", "llava-cot-100k"),
        *("--dataset.dataset_root_dir", str(demo.data)),
        *("--model.type", "cobra-tiny"),
        *("--stage", "finetune"),
        *("--pretrained_checkpoint", "cobra-tiny"),
        *("--model.finetune_max_steps", str(config.steps)),
        *("--model.finetune_learning_rate", str(config.learning_rate)),
        *("--model.finetune_global_batch_size", str(config.batch_size)),
        *("--model.finetune_per_device_batch_size", str(config.batch_size // PROCESSES)),
        *("--seed", str(config.seed)),
        # On a machine with one GPU two processes could not share it, and the model is too small to gain by one.
        *("--device", "cpu"),
        *("--run_root_dir", str(config.output_dir)),
        *("--run_id", RUN_ID),
    ]


def _benchmark(demo: _Demo) -> list[str]:
    return [
        *("--checkpoint", str(demo.run_dir)),
        *("--baseline_checkpoint", "cobra-tiny"),
        *("--coco_annotations", str(demo.captions / "captions_val.json")),
        *("--image_dir", str(demo.captions / "images")),
        *("--output_dir", str(demo.benchmark)),
        *("--batch_size", "32"),
    ]


def _start(demo: _Demo, name: str, purpose: str) -> float:
    demo.console.print()
    demo.console.rule(f"[bold]{name}", align="left")
    demo.console.print(purpose)
    return time.monotonic()


def _command(demo: _Demo, name: str, purpose: str, words: list[str]) -> None:
    """Run one of the user's commands, shown as the user would type it; raise a UserError where it fails."""
    start = _start(demo, name, purpose)
    processes = PROCESSES if name == "train" else 1
    demo.console.print(f"[bold]$ {escape(command_line(name, *words, processes=processes))}")
    # Processes share the cores; torchrun would give each one thread, with a warning.
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if processes > 1 else {})
    # The program of this very environment, whatever the PATH says.
    code = subprocess.run([*program(name, processes), *words], env=environment, check=False).returncode
    if code:
        raise UserError(f"the part {name!r} of the demonstration ended with code {code}; its messages are above")
    demo.seconds[name] = time.monotonic() - start


def _measure(demo: _Demo) -> tuple[AnswerScore, list[tuple[str, str]]]:
    """Let the fine-tuned model answer the held-out questions."""
    start = _start(demo, "answers", "Ask the fine-tuned model about held-out images; judge structure and conclusion")
    rows = read_json(demo.questions / "rows.json", "the held-out questions")
    with torch.inference_mode():
        answers = answer_rows(load(demo.run_dir, device="cpu"), rows, demo.questions / "images")
    answered = [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
    write_json(demo.config.output_dir / "answers.json", answered)
    demo.seconds["answers"] = time.monotonic() - start
    # One sample each of different kinds: rows go through the kinds in turn.
    samples = [(rows[index]["conversations"][0]["value"], answers[index]) for index in range(min(_SAMPLES, len(rows)))]
    return score_answers(rows, answers), samples


def _report(demo: _Demo, score: AnswerScore, samples: list[tuple[str, str]]) -> None:
    """Print the table of answers, samples, and where the files are."""
    say = demo.console.print
    table = Table(title="Conclusions on held-out images", title_justify="left")
    table.add_column("question")
    for name in ("n", "right", "commonest answer", "p"):
        table.add_column(name, justify="right")
    for kind, numbers in {**score.kinds, "all": score.overall}.items():
        accuracy, constant = f"{numbers.accuracy:.1%}", f"{numbers.majority / numbers.n:.1%}"
        table.add_row(kind, str(numbers.n), accuracy, constant, f"{numbers.p_value:.1g}")
    say(table)
    say(
        f"{score.valid} of {score.overall.n} answers have all four stages. p: exact binomial test of the right ones\n"
        "against always giving the commonest answer of the kind."
    )
    chance = [kind for kind, numbers in score.kinds.items() if numbers.p_value > _SIGNIFICANT]
    if chance:
        say(
            f"Not better than the commonest answer (p > {_SIGNIFICANT}): {', '.join(chance)}.\n"
            "So short a training of so small a model has not learned what these ask for."
        )
    for question, answer in samples:
        say(Panel(escape(answer), title=escape(question), title_align="left"))
    for what, path in (
        ("fine-tuned model", demo.run_dir),
        ("captions and scores", demo.benchmark / "report.html"),
        ("all answers", demo.config.output_dir / "answers.json"),
        ("summary", demo.config.output_dir / "summary.json"),
    ):
        say(f"{what:<20} {path}")
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in demo.seconds.items())
    say(f"{'time':<20} {sum(demo.seconds.values()):.0f} s: {parts}")
