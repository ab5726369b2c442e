"""The demonstration from end to end: make the data, run the three commands of a real fine-tuning, measure answers."""

import os
import shutil
import subprocess
import time
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.demo.accuracy import AnswerScore, answer_rows, score_answers
from cobra.demo.config import DemoConfig
from cobra.demo.datasets import LlavaCotSummary, write_coco_captions, write_llava_cot, write_question_rows
from cobra.demo.questions import RELATIONS
from cobra.models.load import load
from cobra.training.page.run_page import PAGE as RUN_PAGE
from cobra.util.errors import UserError, check_values
from cobra.util.files import read_json, write_json
from cobra.util.lock import LOCK, hold
from cobra.util.numbers import counted, share
from cobra.util.program import PART, command_line, program

BASE = "cobra-tiny"
RUN_ID = "cobra-tiny-cot"
PROCESSES = 2

# In every folder that the demonstration made, and which it may therefore empty.
_MARKER = "made-by-the-demo.json"
_PARTS = 5
# One for each stage.
_SAMPLE_LINES = 4
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
    sizes = ("rows", "steps", "batch_size", "caption_images", "questions")
    check_values(
        {name: (getattr(config, name), getattr(config, name) > 0, "at least 1") for name in sizes}
        | {"learning_rate": (config.learning_rate, config.learning_rate > 0, "positive")}
    )
    with hold(config.output_dir, "another demonstration runs"):
        return _run(_Demo(config))


def _run(demo: _Demo) -> dict[str, Any]:
    config = demo.config
    _empty_folder(config)
    demo.console.print(
        "The demonstration draws pictures of coloured shapes with questions about them, fine-tunes the package's small "
        f"model {BASE} on these as you would on LLaVA-CoT-100k, and scores what it has learned. It takes about three "
        f"minutes on two cores, needs no network, and writes to {config.output_dir} alone."
    )
    cot = _write_data(demo)
    # The tokenizer of the model that is trained, which is in the package.
    prepare = ["--dataset_root", str(demo.data), "--llm_backbone_id", "mamba-0.5m-zephyr"]
    _command(demo, "prepare", "Unpack the images, convert and check the rows, report what is wrong with them", prepare)
    _command(demo, "train", f"Fine-tune {BASE} on answers in four stages, in two processes", _pretrain(demo))
    _command(demo, "benchmark", "Score captions of held-out pictures, before (baseline) and after", _benchmark(demo))
    before, score, sample = _measure(demo)
    metrics = read_json(demo.benchmark / "metrics.json", "the benchmark's result")
    summary = {
        "rows": cot.rows,
        "steps": config.steps,
        "seconds": {name: round(value, 1) for name, value in demo.seconds.items()},
        "captions": {"n": metrics["n"], "variants": metrics["variants"]},
        "answers": score.to_dict(),
        "answers_before": before.to_dict(),
    }
    write_json(config.output_dir / "summary.json", summary)
    _report(demo, before, score, sample)
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
    config, start = demo.config, _start(demo, "data", "Draw the pictures and write the rows as LLaVA-CoT-100k has them")
    cot = write_llava_cot(demo.cot, config.rows, config.seed)
    write_coco_captions(demo.captions, config.caption_images, config.seed)
    write_question_rows(demo.questions, config.questions, config.seed)
    defects = ", ".join(f"{count} x {kind}" for kind, count in cot.defects.items())
    demo.console.print(
        f"to train on: {counted(cot.rows, 'row')} in {demo.cot / 'train.jsonl'}, {counted(cot.images, 'image')} in "
        f"{counted(len(cot.parts), 'piece')} of a zip\nwith the defects that the original is known for: "
        f"{escape(defects)}\nheld out: {counted(config.caption_images, 'image')} with five captions each and "
        f"{counted(config.questions, 'question')}; no training picture shows the same"
    )
    demo.seconds["data"] = time.monotonic() - start
    return cot


def _pretrain(demo: _Demo) -> list[str]:
    config = demo.config
    return [
        *("--dataset.type", "llava-cot-100k"),
        *("--dataset.dataset_root_dir", str(demo.data)),
        *("--model.type", BASE),
        *("--stage", "finetune"),
        *("--pretrained_checkpoint", BASE),
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
        *("--baseline_checkpoint", BASE),
        *("--coco_annotations", str(demo.captions / "captions_val.json")),
        *("--image_dir", str(demo.captions / "images")),
        *("--output_dir", str(demo.benchmark)),
        *("--batch_size", "32"),
    ]


def _start(demo: _Demo, name: str, purpose: str) -> float:
    number = len(demo.seconds) + 1
    demo.console.print(f"[bold]-- part {number} of {_PARTS}, {name}:[/bold] {purpose}")
    return time.monotonic()


def _command(demo: _Demo, name: str, purpose: str, words: list[str]) -> None:
    """Run one of the user's commands, shown as the user would type it; raise a UserError where it fails."""
    start = _start(demo, name, purpose)
    processes = PROCESSES if name == "train" else 1
    demo.console.print(f"[bold]$ {escape(command_line(name, *words, processes=processes))}")
    # Processes share the cores; torchrun would give each one thread, with a warning.
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = os.environ | {PART: "demo"} | ({"OMP_NUM_THREADS": threads} if processes > 1 else {})
    # The program of this very environment, whatever the PATH says.
    code = subprocess.run([*program(name, processes), *words], env=environment, check=False).returncode
    if code:
        raise UserError(f"the part {name!r} of the demonstration ended with code {code}; its messages are above")
    demo.seconds[name] = time.monotonic() - start


def _measure(demo: _Demo) -> tuple[AnswerScore, AnswerScore, tuple[str, str]]:
    """Let both models answer the held-out questions; return both scores, and a question with the latter's answer."""
    start = _start(demo, "answers", "Ask both models the held-out questions; judge stages and conclusion")
    rows = read_json(demo.questions / "rows.json", "the held-out questions")
    with torch.inference_mode():
        before, answers = (
            answer_rows(load(model, device="cpu"), rows, demo.questions / "images") for model in (BASE, demo.run_dir)
        )
    answered = [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
    write_json(demo.config.output_dir / "answers.json", answered)
    demo.seconds["answers"] = time.monotonic() - start
    shown = next((place for place, row in enumerate(rows) if row["kind"] in RELATIONS), 0)
    sample = rows[shown]["conversations"][0]["value"], answers[shown]
    return score_answers(rows, before), score_answers(rows, answers), sample


def _report(demo: _Demo, before: AnswerScore, score: AnswerScore, sample: tuple[str, str]) -> None:
    """Print the scores of the answers, one of them, where the files are, and what to do next."""
    say = demo.console.print
    table = Table("question", box=None)
    for name in ("n", "right before", "right after", "commonest answer", "p"):
        table.add_column(name, justify="right")
    earlier = {**before.kinds, "all": before.overall}
    for kind, numbers in {**score.kinds, "all": score.overall}.items():
        n = numbers.n
        shares = (share(right, n) for right in (earlier[kind].correct, numbers.correct, numbers.majority))
        table.add_row(kind, str(n), *shares, f"{numbers.p_value:.1g}", style="bold" if kind == "all" else None)
    say(table)
    say("p: probability of as many right by always giving the commonest answer of the kind (exact binomial test)")
    question, answer = sample
    say(f"[bold]{escape(question)}")
    say("\n".join([f"  {line}" for line in answer.splitlines() if line][:_SAMPLE_LINES]), markup=False)
    after, n = score.overall, score.overall.n
    say("[bold]-- what came out")
    say(
        f"four stages in order: {before.valid} of {n} answers before, {score.valid} after\nright conclusions:    "
        f"{share(before.overall.correct, n)} before, {share(after.correct, n)} after; always the commonest answer: "
        f"{share(after.majority, n)}"
    )
    chance = [kind for kind, numbers in score.kinds.items() if numbers.p_value > _SIGNIFICANT]
    if chance:
        say(f"not learned (p > {_SIGNIFICANT}) in so short a training of so small a model: {', '.join(chance)}")
    _show_ways_on(demo)


def _show_ways_on(demo: _Demo) -> None:
    """Print where the files are, the time that the parts took, and the commands that come next."""
    run = str(demo.run_dir)
    image = str(demo.questions / "images" / "000000.png")
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in demo.seconds.items())
    for what, text in (
        ("time", f"{sum(demo.seconds.values()) / 60:.1f} minutes: {parts}"),
        ("captions and scores", demo.benchmark / "report.html"),
        ("training rows", demo.cot / "report.html"),
        ("the training", demo.run_dir / RUN_PAGE),
        ("numbers, answers", f"{demo.config.output_dir / 'summary.json'}, answers.json"),
        ("next, talk to it", command_line("chat", run, "--image", image)),
        ("or on a page", command_line("serve", run)),
        ("train on your rows", command_line("train", "--help")),
    ):
        demo.console.print(f"{what + ':':<21}{text}", markup=False)


if __name__ == "__main__":
    raise SystemExit(f"this module is no program; run: {command_line('demo')}")
