"""Answers while a model trains: the same on any processes, and nothing of the training changes for them."""

import json
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import together
from scratch import enliven, picture, scratch_vlm
from torch.distributed.tensor import DTensor

from cobra.models.vlms import as_turn
from cobra.preprocessing.datasets import FinetuneDataset
from cobra.training.config import Hyperparameters
from cobra.training.evaluator import Evaluator, gathered, spread
from cobra.training.strategy import TrainStrategy
from cobra.training.validation import Validation, evaluation_mode
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
STRATEGIES = ("fsdp-full-shard", "fsdp-shard-grad-op", "ddp")
STEPS, EVALUATED = 2, (0, 1)
TOKENS = 10


def cot(summary: str, conclusion: str) -> str:
    stages = {"SUMMARY": summary, "CAPTION": "A blot.", "REASONING": "It looks so.", "CONCLUSION": conclusion}
    return "\n\n".join(f"<{stage}> {text} </{stage}>" for stage, text in stages.items())


@pytest.fixture(scope="module")
def rows_dir(tmp_path_factory) -> Path:
    """Nine rows of three sources and of text only; the first question of `vg` fills all tokens and cannot be asked."""
    folder = tmp_path_factory.mktemp("rows")
    images = [
        "coco/0.png",
        "coco/1.png",
        "coco/2.png",
        "vg/3.png",
        "vg/4.png",
        "sqa/train/5.png",
        None,
        None,
        "sqa/8.png",
    ]
    rows = []
    for number, image in enumerate(images):
        turns = [
            {"from": "human", "value": f"<image>\nWhat is in picture {number}?"},
            {"from": "gpt", "value": cot("Look. " * (number + 1), "AB"[number % 2])},
            {"from": "human", "value": "And then?"},
            {"from": "gpt", "value": "Nothing."},
        ]
        if number == 3:
            turns = [{"from": "human", "value": "word " * 3000}, *turns[1:]]
        row = {"id": f"row-{number}", "conversations": turns}
        if image is not None:
            row["image"] = image
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(folder / image)
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def open_rows(vlm, folder: Path, **options) -> tuple[FinetuneDataset, PaddedCollatorForLanguageModeling]:
    backbone, tokenizer = vlm.vision_backbone, vlm.llm_backbone.tokenizer
    builder = vlm.llm_backbone.prompt_builder_fn
    dataset = FinetuneDataset(folder / "rows.json", folder, backbone.image_transform, tokenizer, builder, **options)
    return dataset, PaddedCollatorForLanguageModeling(2048, tokenizer.pad_token_id, backbone.default_image_resolution)


def make_evaluator(vlm, folder: Path, **options) -> Evaluator:
    dataset, collator = open_rows(vlm, folder)
    options = {"samples": 5, "max_new_tokens": TOKENS} | options
    return Evaluator(
        dataset, collator, dataset.get_modality_lengths(), options.pop("per_device_batch_size", 2), **options
    )


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def traces(vlm) -> tuple:
    """What an evaluation must leave as it was."""
    return (
        [
            (name, type(parameter), parameter.requires_grad, parameter.grad)
            for name, parameter in vlm.named_parameters()
        ],
        [module.training for module in vlm.modules()],
        torch.get_rng_state().tolist(),
    )


def train(world: World, strategy: str, rows: Path, run_dir: Path | None) -> list:
    """Train a few steps; with a run directory, evaluate before the first one and after some others."""
    vlm = enliven(scratch_vlm())
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(1, None, 4, 4 // world.size, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.0)
    trainer = TrainStrategy(vlm, world, values, strategy)
    trainer.run_setup()
    # A mode that is not that of its neighbours, as users set it.
    vlm.projector.eval()
    dataset, collator = open_rows(vlm, rows)
    evaluator = make_evaluator(vlm, rows)
    found = []
    for step in range(STEPS + 1):
        if step > 0:
            own = range(world.rank, 4, world.size)
            result = trainer.train_step([collator([dataset[(row + step) % 3] for row in own])], 1e-3)
            found.append((result.loss, result.grad_norm))
        if run_dir is not None and step in EVALUATED:
            before = traces(vlm)
            found.append(evaluator.evaluate(vlm, world, False, step, run_dir))
            assert traces(vlm) == before
            whole = [name for name, parameter in vlm.named_parameters() if not isinstance(parameter, DTensor)]
            assert world.size == 1 or not whole
    return found


def quiet(world: World, rows: Path) -> bool:
    """Whether one process can write answers while the other does nothing: a message between them would never end."""
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    values = Hyperparameters(1, None, 4, 4 // world.size, 1e-3, 0.1, 1.0, "linear-warmup+cosine-decay", 0.0)
    TrainStrategy(vlm, world, values, "fsdp-full-shard").run_setup()
    evaluator = make_evaluator(vlm, rows)
    for _ in range(2):
        with evaluation_mode(vlm):
            evaluator._validation.loss(vlm, world, False)
            # The second time too: what was held whole for the answers is freed after each pass again.
            assert all(isinstance(parameter, DTensor) for parameter in vlm.parameters())
            with gathered(vlm):
                assert not any(isinstance(parameter, DTensor) for parameter in vlm.parameters())
                answers = evaluator._answers(vlm, lambda: None) if world.is_main else []
    return len(answers) == (5 if world.is_main else 0)


def work(world: World, rows: Path, folder: Path) -> None:
    found = {}
    assert quiet(world, rows)
    for strategy in STRATEGIES:
        (folder / strategy).mkdir(exist_ok=True)
        found[strategy] = [train(world, strategy, rows, run_dir) for run_dir in (None, folder / strategy)]
    (folder / f"found-{world.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def alone(rows_dir, tmp_path_factory) -> tuple[list, list[dict]]:
    run_dir = tmp_path_factory.mktemp("alone")
    return train(CPU, "fsdp-full-shard", rows_dir, run_dir), lines(run_dir)


@pytest.fixture(scope="module")
def found_together(rows_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    together(2, folder, work, rows_dir, folder)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_are_those_of_one_process(alone, found_together, strategy):
    expected, answers = alone
    assert lines(found_together / strategy) == answers
    assert len({line["answer"] for line in answers}) > len(answers) / 2
    for rank in range(2):
        found = json.loads((found_together / f"found-{rank}.json").read_text())[strategy][1]
        evaluated = [entry for entry in found if isinstance(entry, dict)]
        assert [sorted(entry) for entry in evaluated] == [["Valid Stages", "Validation Loss"]] * len(EVALUATED)
        for one, other in zip(evaluated, (entry for entry in expected if isinstance(entry, dict)), strict=True):
            assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_is_the_same_with_and_without_looking(found_together, strategy):
    found = [json.loads((found_together / f"found-{rank}.json").read_text())[strategy] for rank in range(2)]
    assert found[0] == found[1]
    without, looked = found[0]
    assert [entry for entry in looked if not isinstance(entry, dict)] == without
    assert len(without) == STEPS and without[0] != without[-1]


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


def test_the_loss_is_that_of_validation(vlm, rows_dir, tmp_path):
    dataset, collator = open_rows(vlm, rows_dir)
    with evaluation_mode(vlm):
        expected = Validation(dataset, collator, dataset.get_modality_lengths(), 2).loss(vlm, CPU, False)
    evaluator = make_evaluator(vlm, rows_dir, samples=0)
    assert evaluator.evaluate(vlm, CPU, False, 1, tmp_path) == {"Validation Loss": expected}
    assert not list(tmp_path.iterdir())


def test_rows_are_spread_over_sources_and_have_an_answer(vlm, rows_dir):
    # coco and sqa have three and two rows, and vg one after the one without an answer.
    asked = [(row.row, row.row_id, row.image) for row in make_evaluator(vlm, rows_dir, samples=20).rows]
    assert [row for row, _, _ in asked] == [0, 6, 5, 1, 7, 8, 4, 2]
    assert asked[1] == (6, "row-6", None) and asked[2] == (5, "row-5", "sqa/train/5.png")
    assert make_evaluator(vlm, rows_dir).rows == make_evaluator(vlm, rows_dir, samples=20).rows[:5]


def test_a_question_that_is_longer_than_the_longest_text_is_not_asked(vlm, tmp_path):
    turns = [{"from": "human", "value": "Why? " * 2048}, {"from": "gpt", "value": "So."}]
    short = [{"from": "human", "value": "Why?"}, turns[1]]
    rows = [{"id": "long", "conversations": turns}, {"id": "short", "conversations": short}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    evaluator = make_evaluator(vlm, tmp_path)
    assert [row.row_id for row in evaluator.rows] == ["short"]
    evaluator.evaluate(vlm, CPU, False, 1, tmp_path)


def test_spread_takes_every_row_once():
    assert spread(["b", "a", "b", "c", "a", "b"]) == [0, 1, 3, 2, 4, 5]
    assert spread([]) == []


@pytest.mark.parametrize("size", [1, 16])
def test_answers_are_those_of_generate(vlm, rows_dir, tmp_path, size):
    evaluator = make_evaluator(vlm, rows_dir, per_device_batch_size=size)
    evaluator.evaluate(vlm, CPU, False, 7, tmp_path)
    for line, row in zip(lines(tmp_path), evaluator.rows, strict=True):
        image = None if row.image is None else Image.open(rows_dir / row.image)
        answer = vlm.generate(image, as_turn(vlm, row.question), max_new_tokens=TOKENS)
        assert line == {
            "step": 7,
            "row": row.row,
            "id": f"row-{row.row}",
            "image": row.image,
            "question": f"What is in picture {row.row}?",
            "reference": cot("Look. " * (row.row + 1), "AB"[row.row % 2]),
            "answer": answer,
        }


def test_shares_of_stages_and_conclusions(vlm, rows_dir, tmp_path, monkeypatch):
    evaluator = make_evaluator(vlm, rows_dir, per_device_batch_size=16)
    # Of rows 0, 5 and 1 with a picture, then 6 and 7.
    written = iter([[cot("So", "A"), cot("So", "C"), "<CONCLUSION> B"], ["Nothing.", cot("", "B")]])
    monkeypatch.setattr(vlm, "generate_batch", lambda *_, **__: next(written))
    values = evaluator.evaluate(vlm, CPU, False, 1, tmp_path)
    assert values["Valid Stages"] == 2 / 5
    assert values["Conclusion Match"] == 3 / 4


def test_bf16_writes_answers_too(vlm, rows_dir, tmp_path):
    evaluator = make_evaluator(vlm, rows_dir)
    values = evaluator.evaluate(vlm, CPU, True, 1, tmp_path)
    exact = evaluator.evaluate(vlm, CPU, False, 2, tmp_path)
    assert values["Validation Loss"] == pytest.approx(exact["Validation Loss"], rel=0.05)
    assert values["Validation Loss"] != exact["Validation Loss"]
    assert [line["step"] for line in lines(tmp_path)] == [1] * 5 + [2] * 5


def test_rows_with_bad_images_are_not_asked_about(vlm, rows_dir, tmp_path):
    (tmp_path / "rows.json").write_text((rows_dir / "rows.json").read_text())
    for name in ("coco", "vg"):
        (tmp_path / name).symlink_to(rows_dir / name)
    dataset, collator = open_rows(vlm, tmp_path, on_bad_image="skip")
    evaluator = Evaluator(dataset, collator, dataset.get_modality_lengths(), 2, samples=20)
    assert [row.row for row in evaluator.rows] == [0, 6, 1, 7, 4, 2]
    dataset, _ = open_rows(vlm, tmp_path)
    with pytest.raises(UserError, match=r"row 5 \(id 'row-5'\).*does not exist"):
        Evaluator(dataset, collator, dataset.get_modality_lengths(), 2, samples=20)


def test_answers_of_steps_that_are_done_again_are_replaced(vlm, rows_dir, tmp_path):
    evaluator = make_evaluator(vlm, rows_dir, samples=1, max_new_tokens=2)
    for step in (10, 20, 30, 20):
        evaluator.evaluate(vlm, CPU, False, step, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    evaluator.cut_back(tmp_path, 15)
    assert [line["step"] for line in lines(tmp_path)] == [10]
    evaluator.cut_back(tmp_path, 0)
    assert lines(tmp_path) == []


def test_a_full_disk_costs_answers_and_not_the_run(vlm, rows_dir, tmp_path, monkeypatch, capsys):
    evaluator = make_evaluator(vlm, rows_dir, samples=1, max_new_tokens=2)
    evaluator.evaluate(vlm, CPU, False, 1, tmp_path)
    size = (tmp_path / "samples.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, before[1]))
    try:
        values = evaluator.evaluate(vlm, CPU, False, 2, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert values["Validation Loss"] > 0
    assert "warning: the answers of step 2 could not be written" in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
