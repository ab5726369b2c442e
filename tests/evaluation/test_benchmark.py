"""benchmark.py from its flags to its files, with models that answer by rule."""

import json
from pathlib import Path

import pytest
import torch
from fake_vlm import FakeVLM

import cobra
from cobra.commands import benchmark as benchmark_command
from cobra.evaluation import benchmark as module
from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.responses.protocol import DEFAULT_PROMPT, resolve_prompt
from cobra.evaluation.tasks import base as task_base
from cobra.evaluation.tasks import captions as caption_task
from cobra.util.cli import parse, run
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    return benchmark_command


@pytest.fixture
def models(monkeypatch):
    """Three checkpoints, and the order in which they were loaded."""
    known = {
        "stock": FakeVLM("stock"),
        "tuned": FakeVLM("tuned", staged=True, is_stock=False),
        "other": FakeVLM("other", is_stock=False),
    }
    loads = []

    def load(checkpoint, hf_token=None, device=None, dtype=None, quantize=None):
        loads.append((checkpoint, device, dtype))
        if checkpoint not in known:
            raise UserError(f"{checkpoint!r} is neither a run directory, a checkpoint file nor a known model")
        return known[checkpoint]

    monkeypatch.setattr(cobra, "load", load, raising=False)
    monkeypatch.setattr(caption_task, "packaged_model_is_installed", lambda: False)
    return known | {"loads": loads}


@pytest.fixture
def main(script, tmp_path, capsys, models):
    """Call the script with flags; returns its exit code, the output folder, and what it printed."""

    def call(*flags):
        with pytest.raises(SystemExit) as exit_info:
            run(script.main, script.BenchmarkConfig, [*map(str, flags), "--output_dir", str(tmp_path / "out")])
        printed = capsys.readouterr()
        return exit_info.value.code, tmp_path / "out", printed.out + printed.err

    return call


def data(captions):
    return "--coco_annotations", captions.annotations, "--image_dir", captions.image_dir


@pytest.mark.parametrize("text", ["yes", "What: a?", "[x] {y: 1}", "null", "12", "include all", '"quoted"'])
def test_prompts_arrive_as_typed(text):
    assert parse(BenchmarkConfig, ["--prompt", text]).prompt == text
    assert resolve_prompt(parse(BenchmarkConfig, []).prompt) == DEFAULT_PROMPT


def test_four_variants(main, captions, models):
    code, out, printed = main("--checkpoint", "tuned", "--baseline_checkpoint", "stock", *data(captions))
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n"] == 6
    assert list(metrics["variants"]) == ["baseline", "baseline+scratchpad", "finetuned", "finetuned+scratchpad"]
    values = {name: {key: entry["value"] for key, entry in row.items()} for name, row in metrics["variants"].items()}
    assert values["finetuned+scratchpad"]["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert values["baseline"]["bleu_4"] == values["finetuned"]["bleu_4"] < 0.6
    assert values["finetuned"]["raw_bleu_4"] < values["baseline"]["raw_bleu_4"]
    assert [values[name]["valid_structure"] for name in values] == [0, 0, 1, 1]
    assert [values[name]["conclusion_fallbacks"] for name in values] == [1, 1, 0, 0]
    assert metrics["checkpoints"]["baseline"]["sha256"] == models["stock"].checkpoint_sha256
    assert metrics["decoding"] == {
        "do_sample": False,
        "max_new_tokens": 512,
        "scratchpad_max_new_tokens": 256,
        "batch_size": 8,
    }
    assert DEFAULT_PROMPT in printed and "all 6 images" in printed and "cobra-vlm[demo]" in printed
    assert metrics["prompt_sha256"] not in printed and metrics["signature"] not in printed
    # One at a time: both are proved to load before the first answer, the one that is there answers first.
    assert [name for name, _, _ in models["loads"]] == ["stock", "tuned", "stock"]
    # Each variant can be scored again from its own file.
    own = out / "predictions" / "finetuned+scratchpad.json"
    again = module.benchmark(
        BenchmarkConfig(predictions=own, coco_annotations=captions.annotations, output_dir=out / "again")
    )
    assert again.estimates["predictions"]["bleu_4"].value == values["finetuned+scratchpad"]["bleu_4"]


@pytest.mark.parametrize(
    ("checkpoint", "role"), [("stock", "baseline"), ("tuned", "finetuned"), ("other", "finetuned")]
)
def test_one_checkpoint_is_named_by_what_it_is(main, captions, models, checkpoint, role):
    code, out, _ = main("--checkpoint", checkpoint, *data(captions), "--device", "cpu", "--dtype", "fp32")
    assert code == 0
    assert list(json.loads((out / "metrics.json").read_text())["variants"]) == [role, f"{role}+scratchpad"]
    assert models["loads"] == [(checkpoint, "cpu", "fp32")]


def test_predictions_need_no_model_and_no_images(main, captions, models):
    code, out, _ = main("--predictions", captions.predictions, "--coco_annotations", captions.annotations)
    assert (code, models["loads"]) == (0, [])
    assert "Predictions were scored on" in (out / "report.html").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    names = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "length_ratio"}
    assert set(metrics["variants"]["predictions"]) == names
    assert not (out / "answers").exists() and "prompt" not in metrics


def test_predictions_beside_a_model_on_a_sample(main, captions, models):
    flags = ("--checkpoint", "stock", "--predictions", captions.predictions, "--max_images", 4, "--batch_size", 3)
    code, out, _ = main(*flags, *data(captions), "--prompt", "What: a?", "--max_new_tokens", 9)
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n"], metrics["prompt"]) == (4, "What: a?")
    assert list(metrics["variants"]) == ["baseline", "baseline+scratchpad", "predictions"]
    ids = [[row["image_id"] for row in json.loads(path.read_text())] for path in (out / "predictions").iterdir()]
    assert ids[0] == ids[1] == ids[2] and len(set(ids[0])) == 4
    assert models["stock"].calls == [(3, 9), (1, 9), (3, 256), (1, 256), (3, 9), (1, 9)]


BAD_FLAGS = {
    "nothing": ([], "nothing to score: give --checkpoint"),
    "results as a model": (
        ["--checkpoint", "results.json"],
        "results.json is no model: captions to score are given with --predictions",
    ),
    "baseline alone": (["--baseline_checkpoint", "stock"], "nothing to score"),
    "baseline with predictions": (["--baseline_checkpoint", "stock", "--predictions", "p.json"], "give that too"),
    "empty prompt": (["--checkpoint", "stock", "--prompt", " "], "--prompt is empty"),
    "no tokens": (["--checkpoint", "stock", "--max_new_tokens", "0"], "--max_new_tokens is 0"),
    "no images": (["--checkpoint", "stock", "--max_images", "0"], "--max_images is 0"),
    "no batch": (["--checkpoint", "stock", "--batch_size", "-1"], "--batch_size is -1"),
    "unknown device": (["--checkpoint", "stock", "--device", "abacus"], "'abacus' is not a device"),
    "unknown dtype": (["--checkpoint", "stock", "--device", "cpu", "--dtype", "fp7"], "the dtype 'fp7' is unknown"),
    "unknown task": (["--checkpoint", "stock", "--task", "poems"], "--task 'poems' is unknown"),
    "rows without their task": (
        ["--checkpoint", "stock", "--llava_cot_annotations", "h.json"],
        "give --task llava-cot too",
    ),
    "captions for conclusions": (
        ["--checkpoint", "stock", "--task", "llava-cot", "--predictions", "p.json"],
        "has no use for --predictions",
    ),
    "unknown flag": (["--checkpoints", "stock"], "--checkpoints"),
    "not a number": (["--batch_size", "many"], "batch_size"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(main, captions):
    code, out, printed = main("--checkpoint", "stock", "--device", "cuda", *data(captions))
    assert code == 2 and "--device cpu" in printed and not out.exists()


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_flags_that_make_no_sense(main, flags, message):
    code, out, printed = main(*flags)
    assert code == 2 and message in printed and not out.exists()
    assert printed.startswith("error: ") and "Traceback" not in printed


def test_without_annotations_the_command_that_fetches_them_is_named(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, printed = main("--checkpoint", "stock")
    assert code == 2 and "python scripts/preprocess.py --dataset_id coco-captions --root_dir data" in printed
    assert not out.exists()


def test_annotations_of_the_download_are_the_default(main, captions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "download" / "coco-captions"
    (folder / "annotations").mkdir(parents=True)
    captions.annotations.rename(folder / "annotations" / "captions_val2017.json")
    captions.image_dir.rename(folder / "val2017")
    code, out, _ = main("--checkpoint", "stock")
    assert code == 0 and (out / "metrics.json").is_file()


def break_annotations(captions):
    captions.annotations.write_text('{"images": [\n{"id": 1,,\n')
    return "line 2"


def lose_annotations(captions):
    captions.annotations.unlink()
    return "does not exist"


def lose_images(captions):
    captions.image_dir.rename(captions.image_dir.with_name("elsewhere"))
    return "image folder does not exist"


def lose_one_image(captions):
    (captions.image_dir / "val" / "2.png").unlink()
    return "lacks 1 image: val/2.png"


def lose_predictions(captions):
    captions.predictions.unlink()
    return "predictions file does not exist"


def break_predictions(captions):
    captions.predictions.write_text("[\n\n{]")
    return "line 3"


def shorten_predictions(captions):
    rows = json.loads(captions.predictions.read_text())
    captions.predictions.write_text(json.dumps(rows[1:]))
    return "no caption for 1 image: 100"


BAD_INPUT = [
    break_annotations,
    lose_annotations,
    lose_images,
    lose_one_image,
    lose_predictions,
    break_predictions,
    shorten_predictions,
]


@pytest.mark.parametrize("harm", BAD_INPUT)
def test_bad_input_is_named_and_nothing_is_written(main, captions, models, harm):
    message = harm(captions)
    code, out, printed = main("--checkpoint", "stock", "--predictions", captions.predictions, *data(captions))
    assert code == 2 and message in printed and "Traceback" not in printed
    assert not out.exists() and models["stock"].calls == []


def test_an_unknown_checkpoint_is_found_before_the_other_one_answers(main, captions, models):
    code, out, printed = main("--checkpoint", "nowhere", "--baseline_checkpoint", "stock", *data(captions))
    assert code == 2 and "'nowhere' is neither" in printed
    assert not out.exists() and models["stock"].calls == []


def test_image_dir_must_come_with_annotations(main, captions):
    code, out, printed = main("--checkpoint", "stock", "--coco_annotations", captions.annotations)
    assert code == 2 and "--image_dir is missing" in printed and not out.exists()


def test_a_screen_that_is_gone_does_not_cost_the_answers(captions, models, tmp_path, monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(task_base, "print_results", broken)
    config = BenchmarkConfig(
        checkpoint="stock",
        coco_annotations=captions.annotations,
        image_dir=captions.image_dir,
        output_dir=tmp_path / "out",
    )
    with pytest.raises(BrokenPipeError):
        module.benchmark(config)
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_an_interrupt_leaves_no_results(main, captions, models, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models["stock"], "generate_batch_ids", interrupt)
    code, out, printed = main("--checkpoint", "stock", *data(captions))
    assert code == 130 and "interrupted" in printed and not out.exists()
