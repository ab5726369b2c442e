"""The ONNX export: graphs for any number of rows and tokens, answers as the model's, and a folder that stands alone."""

import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import cobra
from cobra.export.config import ExportConfig
from cobra.export.export import export
from cobra.export.formats import FORMATS
from cobra.export.parity import answers_of, parity_questions
from cobra.models.backbones.vision.transforms import build_transform
from cobra.models.mamba import MambaState
from cobra.models.mamba.ops import use_op
from cobra.util.errors import UserError

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from cobra.export.onnx import writer  # noqa: E402
from cobra.export.onnx.frontend import main, pixels_of  # noqa: E402
from cobra.export.onnx.language_model import check_exportable  # noqa: E402
from cobra.export.onnx.runner import Runner  # noqa: E402


@pytest.fixture(scope="module")
def vlm():
    return cobra.load("cobra-tiny", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("onnx") / "exported"
    return export(ExportConfig(checkpoint="cobra-tiny", output=output, format="onnx", parity=8))


@pytest.fixture(scope="module")
def runner(folder):
    return Runner(folder, threads=1)


def test_the_folder_says_that_its_answers_are_the_models(folder):
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["passed"] and (parity["questions"], parity["equal"]) == (8, 8)
    assert parity["largest_difference_of_first_logits"] < 1e-4
    assert not {"/", os.sep} & set("".join(json.loads((folder / "inputs.json").read_text())["graphs"]))
    assert str(writer.__file__).encode() not in (folder / "vision.onnx").read_bytes()
    assert (folder / "vision.onnx").stat().st_size < 200_000


def test_prompts_of_uneven_length_are_answered_as_one_by_one(runner):
    questions = parity_questions(16)
    pictures = [each.picture for each in questions]
    texts = ["Why? " * number + each.text for number, each in enumerate(questions)]
    together = runner.answer(pictures, texts, 24, batch_size=16)
    alone = [runner.answer([picture], [text], 24)[0] for picture, text in zip(pictures, texts, strict=True)]
    assert together == alone


@pytest.mark.parametrize(("rows", "positions", "longest"), [(1, 0, 1), (1, 9, 1), (3, 0, 7), (2, 40, 5)])
def test_scores_and_state_are_the_models(vlm, runner, rows, positions, longest):
    torch.manual_seed(positions)
    llm = vlm.llm_backbone.llm
    features = torch.randn(rows, positions, llm.config.d_model)
    prompts = [list(range(5, 6 + (longest - 1) * row // max(1, rows - 1))) for row in range(rows)]
    scores, state = runner.read(features.numpy(), prompts)
    for row, prompt in enumerate(prompts):
        own = MambaState.zeros(llm.config, 1, "cpu")
        embeds = torch.cat([features[row : row + 1], llm.embed(torch.tensor([prompt]))], 1)
        with torch.no_grad(), use_op("torch"):
            expected = llm.logits(llm(embeds, own)[:, -1])
        assert np.allclose(scores[row], expected[0], atol=1e-4)
        assert np.allclose(state["conv"][:, row], own["conv"][:, 0], atol=1e-5)
        assert np.allclose(state["ssm"][:, row], own["ssm"][:, 0].transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("resize", ["resize-naive", "resize-crop", "letterbox"])
@pytest.mark.parametrize("size", [(48, 48), (61, 100), (333, 40), (7, 5)])
def test_pictures_become_the_same_pixels(resize, size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, mean, std = Image.fromarray(values), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = build_transform(resize, 48, mean, std)(picture).numpy()
    assert np.abs(pixels_of(picture, resize, 48, mean, std) - expected).max() < 1e-6


def test_a_strip_is_refused_before_it_fills_the_memory():
    with pytest.raises(ValueError, match="too thin"):
        pixels_of(Image.new("RGB", (60_000, 1)), "letterbox", 48, (0.5,) * 3, (0.5,) * 3)


def test_the_program_in_the_folder_needs_nothing_of_this_package(folder, tmp_path, runner):
    question = parity_questions(1)[0]
    path = tmp_path / "photo.png"
    question.picture.save(path)
    blocker = "import sys\nfor name in ('cobra', 'torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    command = [sys.executable, str(folder / "answer.py"), str(path), question.text]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == runner.answer([question.picture], [question.text])[0]


BAD_CALLS = {
    ("nope.png", "What?"): "nope.png cannot be opened as a picture (.*No such file",
    ("notes.txt", "What?"): "notes.txt cannot be opened as a picture (cannot identify",
    ("torn.png", "What?"): "torn.png cannot be opened as a picture (.*truncated",
    (".", "What?"): ". cannot be opened as a picture (.*Is a directory",
    ("-", "why " * 3000): "the prompt has .* tokens, the most are",
    ("-", "What?", "--max_new_tokens", "0"): "max_new_tokens is 0 and must be at least 1",
    ("-", "What?", "--folder", "nowhere"): "no model can be read from nowhere, .*export.*No such file",
    ("-", "What?", "--folder", "list"): "no model can be read from list, .*of format None, expected 1",
    ("-", "What?", "--folder", "torn"): "no model can be read from torn, .*vision.onnx",
}


@pytest.mark.parametrize("arguments", BAD_CALLS, ids=" ".join)
def test_the_program_tells_in_one_line_what_is_wrong(folder, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    parity_questions(1)[0].picture.save("whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-60])
    for name in ("list", "torn"):
        (tmp_path / name).mkdir()
        for file in ("inputs.json", "tokenizer.json"):
            (tmp_path / name / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "list" / "inputs.json").write_text("[]")
    (tmp_path / "torn" / "vision.onnx").write_text("hello")
    given = [*arguments, *(() if "--folder" in arguments else ("--folder", str(folder)))]
    monkeypatch.setattr(sys, "argv", ["answer.py", *given])
    with pytest.raises(SystemExit) as end:
        main(Runner)
    told = capsys.readouterr()
    assert end.value.code == 2 and told.out == "" and told.err.count("\n") == 1
    assert re.match("error: " + BAD_CALLS[arguments].replace("(", r"\("), told.err), told.err


def test_a_folder_of_another_form_and_a_long_question_are_refused(folder, runner, tmp_path):
    for name in ("tokenizer.json", "vision.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    inputs = json.loads((folder / "inputs.json").read_text())
    (tmp_path / "inputs.json").write_text(json.dumps(inputs | {"format": 2}))
    with pytest.raises(ValueError, match="is of format 2, expected 1"):
        Runner(tmp_path)
    with pytest.raises(ValueError, match="tokens, the most are"):
        runner.answer([None], ["why " * 3000])


@pytest.mark.parametrize(("pictures", "questions"), [(1, 2), (2, 1), (0, 1)])
def test_each_question_has_its_picture_or_none(runner, pictures, questions):
    with pytest.raises(ValueError, match=f"there are {pictures} pictures and {questions} questions"):
        runner.answer([None] * pictures, ["What?"] * questions, 2)


def test_special_tokens_of_a_question_are_no_ends_of_a_turn(vlm, runner):
    text = "one <|endoftext|> <image> two"
    assert runner.frontend.prompt(text) == vlm.tokenize(cobra.models.vlms.as_turn(vlm, text))


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same_scores(tmp_path, vlm):
    output = tmp_path / "half"
    export(ExportConfig(checkpoint="cobra-tiny", output=output, format="onnx", dtype="fp16", parity=0))
    written, questions = Runner(output, threads=1), parity_questions(4)
    for ours, theirs in zip(answers_of(vlm, questions), writer.answers_of(written, questions), strict=True):
        assert (ours.first - theirs.first).abs().max() < 0.2


def test_what_cannot_be_written_is_named(tmp_path, vlm, monkeypatch):
    with pytest.raises(UserError, match=r"--dtype 'bf16' is unknown; the known ones are: fp32, fp16"):
        export(ExportConfig(checkpoint="cobra-tiny", output=tmp_path / "a", format="onnx", dtype="bf16"))
    other = SimpleNamespace(config=SimpleNamespace(mixer="Mamba9"), backbone=deepcopy(vlm.llm_backbone.llm.backbone))
    other.backbone.layers[0].mixer = torch.nn.Identity()
    with pytest.raises(UserError, match="'Mamba9', and only Mamba1"):
        check_exportable(other)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package onnx, which is not installed: pip install 'cobra-vlm\[onnx\]'"
    ):
        FORMATS["onnx"].writer()
