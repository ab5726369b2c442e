"""Questions from Python: images in any form, lists, options by name, and errors in words for what goes wrong."""

import inspect
import io
import logging
import pathlib
import random
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scratch import enliven, picture, scratch_vlm

import cobra
from cobra.demo.scenes import random_scene, render
from cobra.models.generation.options import AnswerOptions, AskArguments, GenerateArguments, GenerationOptions
from cobra.models.vlms import SearchOptions, as_turn, generation_mixin
from cobra.talk.conversation import Conversation
from cobra.util.errors import UserError

QUESTIONS = ["What is it?", "How many shapes are there, and of which colours?"]
IMAGE = picture(1)
ARRAY = np.asarray(IMAGE)
SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def tiny():
    return cobra.load("cobra-tiny", device="cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "it.png"
    IMAGE.save(path)
    return path


def test_ask_makes_the_prompt(vlm):
    answer = vlm.ask(IMAGE, QUESTIONS[0], **SHORT)
    assert answer == vlm.generate(IMAGE, as_turn(vlm, QUESTIONS[0]), **SHORT) != ""
    assert answer != vlm.ask(picture(2), QUESTIONS[0], **SHORT)
    assert vlm.ask(None, QUESTIONS[0], **SHORT) == vlm.generate(None, as_turn(vlm, QUESTIONS[0]), **SHORT)


@pytest.mark.fault("E9")
@pytest.mark.parametrize("form", ["path", "str", "bytes", "array", "alpha", "slice"])
def test_images_come_in_any_form(vlm, file, form):
    alpha = np.dstack([ARRAY, np.full(ARRAY.shape[:2], 255, np.uint8)])
    image = {
        "path": file,
        "str": str(file),
        "bytes": file.read_bytes(),
        "array": ARRAY,
        "alpha": alpha,
        "slice": ARRAY[..., ::-1][..., ::-1],
    }[form]
    expected, prompt = vlm.ask(IMAGE, QUESTIONS[0], **SHORT), as_turn(vlm, QUESTIONS[0])
    assert vlm.ask(image, QUESTIONS[0], **SHORT) == expected
    assert vlm.generate(image, prompt, **SHORT) == expected
    assert "".join(vlm.stream(image, prompt, **SHORT)).strip() == expected
    options = GenerationOptions(**SHORT)
    assert "".join(Conversation(vlm, image).ask(QUESTIONS[0], options)).strip() == expected


def test_grey_arrays_are_grey_pictures_and_files_are_turned_upright(vlm):
    assert vlm.ask(np.asarray(IMAGE.convert("L")), "What?", **SHORT) == vlm.ask(IMAGE.convert("L"), "What?", **SHORT)
    turned, data = Image.Exif(), io.BytesIO()
    turned[274] = 6
    IMAGE.save(data, "PNG", exif=turned)
    upright = ImageOps.exif_transpose(Image.open(data))
    assert vlm.ask(data.getvalue(), "What?", **SHORT) == vlm.ask(upright, "What?", **SHORT)


def test_lists_are_answered_together(vlm, file):
    images = [picture(2), file]
    each = [vlm.ask(image, question, **SHORT) for image, question in zip(images, QUESTIONS, strict=True)]
    assert vlm.ask(images, QUESTIONS, **SHORT) == each
    assert vlm.ask(images, QUESTIONS[0], **SHORT) == [vlm.ask(image, QUESTIONS[0], **SHORT) for image in images]
    assert vlm.ask(IMAGE, QUESTIONS, **SHORT) == [vlm.ask(IMAGE, question, **SHORT) for question in QUESTIONS]
    assert vlm.ask(None, QUESTIONS, **SHORT) == [vlm.ask(None, question, **SHORT) for question in QUESTIONS]
    assert vlm.ask(tuple(images[:1]), QUESTIONS[:1], **SHORT) == [vlm.ask(images[0], QUESTIONS[0], **SHORT)]
    pixels = vlm.preprocess(image for image in images)
    assert vlm.generate_batch(pixels, [as_turn(vlm, question) for question in QUESTIONS], **SHORT) == each
    assert vlm.ask([], "What?") == vlm.ask(IMAGE, []) == []


def test_an_image_with_several_questions_is_read_once(vlm, monkeypatch):
    seen, encode = [], vlm.encode_images
    monkeypatch.setattr(vlm, "encode_images", lambda pixels: seen.append(len(pixels["dino"])) or encode(pixels))
    vlm.ask(IMAGE, QUESTIONS, **SHORT)
    assert seen == [1]


def test_seeds_fix_what_is_drawn(vlm):
    hot = {"do_sample": True, "temperature": 3.0, **SHORT}
    first, second = vlm.ask([IMAGE, IMAGE], "What?", seed=3, **hot)
    assert first != second
    assert [first, second] == [vlm.ask(IMAGE, "What?", seed=seed, **hot) for seed in (3, 4)]
    torch.manual_seed(1)
    assert len({vlm.ask(IMAGE, "What?", **hot) for _ in range(3)}) > 1


@pytest.mark.parametrize("search", ["best-of-n", "vote", "stage-beam"])
def test_ask_searches_too(vlm, search):
    answers = vlm.ask([IMAGE, picture(2)], "What?", search=search, beams=2, seed=5, max_new_tokens=96)
    assert answers[0] == vlm.ask(IMAGE, "What?", search=search, beams=2, seed=5, max_new_tokens=96)
    assert all(answer.startswith("<SUMMARY>") for answer in answers)


@pytest.mark.fault("E13")
@pytest.mark.parametrize("search", ["best-of-n", "vote", "stage-beam"])
def test_a_model_as_released_is_not_made_to_write_stages(tiny, search):
    image = render(random_scene(random.Random(1), "held-out"))
    answer = tiny.ask(image, "What is in the picture?", search=search, seed=1)
    assert answer == tiny.ask(image, "What is in the picture?") == "A green cross at the left."
    [found] = tiny.search_batch(None, [as_turn(tiny, "What?")], SearchOptions(search, guard=True), seeds=[1])
    assert found.text.startswith("<SUMMARY>")


def text_error(name):
    return f"the text is of type {name}: expected a str. The image comes first"


# A call, and what is said of it.
WRONG_CALLS = {
    "swapped": (lambda vlm: vlm.ask("What is it?", IMAGE), text_error("Image")),
    "swapped for generate": (lambda vlm: vlm.generate("What is it?", IMAGE), text_error("Image")),
    "called": (lambda vlm: vlm(IMAGE, "What?"), r"forward needs input_ids.*vlm\.ask\(image, question\) answers"),
    "no such file": (lambda vlm: vlm.ask("nowhere.jpg", "What?"), r"'nowhere\.jpg' cannot be opened as a picture"),
    "a folder": (lambda vlm: vlm.generate(pathlib.Path("/"), "What?"), "'/' is not a file"),
    "bytes of none": (lambda vlm: vlm.ask(b"{}", "What?"), "'<bytes>' cannot be opened as a picture .it is JSON text"),
    "floats": (lambda vlm: vlm.ask(ARRAY / 255, "What?"), r"array of float64 \(48, 48, 3\): expected uint8, 0 to 255"),
    "channels first": (
        lambda vlm: vlm.generate(ARRAY.transpose(2, 0, 1), "What?"),
        r"uint8 \(3, 48, 48\): expected \(height, width, 3\).*array\.transpose\(1, 2, 0\)",
    ),
    "one channel": (lambda vlm: vlm.ask(ARRAY[:, :, :1], "What?"), r"array\[:, :, 0\]"),
    "stack": (lambda vlm: vlm.ask(ARRAY[None], "What?"), r"For several images give a list: list\(array\)"),
    "no pixels": (lambda vlm: vlm.ask(ARRAY[:0], "What?"), r"uint8 \(0, 48, 3\): expected"),
    "tensor": (lambda vlm: vlm.ask(torch.zeros(3, 8, 8), "What?"), r"type Tensor is not taken.*permute\(1, 2, 0\)"),
    "number": (lambda vlm: vlm.ask(7, "What?"), "type int is not taken: expected a PIL image, a path or address"),
    "none in a list": (lambda vlm: vlm.ask([IMAGE, None], "What?"), "type NoneType is not taken"),
    "list for generate": (
        lambda vlm: vlm.generate([IMAGE], "What?"),
        r"list is not taken.*vlm\.ask\(images, questions\)",
    ),
    "list for a talk": (lambda vlm: Conversation(vlm, [IMAGE]), "list is not taken"),
    "counts": (lambda vlm: vlm.ask([IMAGE], ["What?", "Why?"]), "lists of images and questions have 1 and 2 entries"),
    "no question": (lambda vlm: vlm.ask(IMAGE, None), text_error("NoneType")),
    "a bare text": (lambda vlm: vlm.generate_batch(None, "What?"), r"a list of them is expected: \['What\?'\]"),
    "images as pixels": (
        lambda vlm: vlm.generate_batch([IMAGE], ["What?"]),
        r"the pixel values are a list, expected a tensor \(images, 3, height, width\) for each of dino and siglip",
    ),
    "pixels of one tower": (
        lambda vlm: vlm.generate_batch(torch.zeros(1, 3, 48, 48), ["What?"]),
        r"are a Tensor, expected a tensor .* for each of dino and siglip, as vlm\.preprocess",
    ),
    "preprocess one": (lambda vlm: vlm.preprocess(IMAGE), r"a list of one or more images: vlm\.preprocess"),
    "preprocess none": (lambda vlm: vlm.preprocess([]), "takes a list of one or more images"),
    "preprocess a name": (lambda vlm: vlm.preprocess("it.png"), "takes a list of one or more images"),
    "a name of others": (
        lambda vlm: vlm.ask(IMAGE, "What?", max_tokens=5),
        "'max_tokens' is unknown.*mean max_new_tokens",
    ),
    "a typing error": (
        lambda vlm: vlm.generate(IMAGE, "What?", temprature=1.0),
        "'temprature'.*Did you mean temperature",
    ),
    "beams": (lambda vlm: vlm.ask(IMAGE, "What?", num_beams=2), "'num_beams' is unknown.*Did you mean beams"),
    "a search": (lambda vlm: vlm.ask(IMAGE, "What?", search="beam"), "the search 'beam' is unknown.*stage-beam"),
    "temperature 0": (lambda vlm: vlm.ask(IMAGE, "What?", temperature=0), "do_sample=False takes the best token"),
    "a text for a number": (lambda vlm: vlm.ask(IMAGE, "What?", max_new_tokens="9"), "is '9', expected a number"),
    "a penalty in a search": (
        lambda vlm: vlm.ask(IMAGE, "What?", search="vote", repetition_penalty=1.2),
        "a search does not know repetition_penalty",
    ),
}


@pytest.mark.fault("E9")
@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls_are_answered_in_words(vlm, call):
    wrong, said = WRONG_CALLS[call]
    with pytest.raises(UserError, match=said):
        wrong(vlm)


METHODS = {"ask": (AnswerOptions, AskArguments)} | dict.fromkeys(
    ("generate", "generate_batch", "stream"), (GenerationOptions, GenerateArguments)
)


@pytest.mark.fault("E9")
@pytest.mark.parametrize("name", METHODS)
def test_options_have_names_for_people_and_type_checkers(vlm, name):
    options, arguments = METHODS[name]
    names = {field.name for field in fields(options)}
    assert names == set(arguments.__annotations__) - {"use_cache"}
    method = getattr(vlm, name)
    parameters = inspect.signature(method).parameters
    assert names <= set(parameters)
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    assert "Any" not in str(next(hint for key, hint in method.__annotations__.items() if key in ("kwargs", "options")))
    if name == "ask":
        assert all(re.search(rf"^ +{each}: \S", method.__doc__, re.MULTILINE) for each in names)


@pytest.mark.fault("E9")
def test_a_question_without_the_prompt_format_is_told_once(vlm, caplog):
    generation_mixin._tell_bare_prompt.cache_clear()
    with caplog.at_level(logging.WARNING):
        vlm.ask(IMAGE, "What?", **SHORT)
        vlm.generate(IMAGE, as_turn(vlm, "What?"), **SHORT)
        assert not caplog.records
        for _ in range(2):
            vlm.generate(IMAGE, "What?", **SHORT)
            list(vlm.stream(IMAGE, "What?", **SHORT))
    [record] = caplog.records
    assert re.search(r"has no <\|assistant\|>.*use vlm\.ask\(image, question\)", record.getMessage())


def test_options_that_change_nothing_are_told(vlm, caplog):
    with caplog.at_level(logging.WARNING):
        vlm.ask(IMAGE, "What?", do_sample=True, temperature=0.7, **SHORT)
        vlm.ask(IMAGE, "What?", search="best-of-n", temperature=0.7, beams=1, max_new_tokens=64)
        assert not caplog.records
        vlm.ask(IMAGE, "What?", temperature=0.7, top_k=4, **SHORT)
    assert [record.getMessage() for record in caplog.records] == [
        "without do_sample=True, temperature, top_k changes nothing"
    ]


@pytest.mark.fault("E9")
def test_a_model_is_shown_in_four_lines(tiny):
    first, *parts = repr(tiny).splitlines()
    assert first == "CobraVLM 'cobra-tiny' on cpu in float32" and str(tiny) == repr(tiny)
    assert [line.split()[0] for line in parts] == ["vision_backbone", "projector", "llm_backbone"]
    count = sum(parameter.numel() for parameter in tiny.llm_backbone.parameters())
    assert parts[2].endswith(f"mamba-0.5m-zephyr, {count / 1e6:.2f} M parameters")
    assert "(llm): MambaLM(" in repr(tiny.llm_backbone)
