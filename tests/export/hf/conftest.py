"""The packaged model, exported for transformers once, and loaded through the Auto classes."""

from types import SimpleNamespace

import pytest
from scratch import picture

import cobra
from cobra.export.config import ExportConfig
from cobra.export.export import export


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("hf") / "tiny"
    return export(ExportConfig(checkpoint="cobra-tiny", output=output, format="transformers", parity=4))


@pytest.fixture(scope="session")
def vlm():
    return cobra.load("cobra-tiny", device="cpu")


@pytest.fixture(scope="session")
def hf(hf_folder):
    """Model and processor, and functions to prepare chats."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(hf_folder).eval()
    processor = AutoProcessor.from_pretrained(hf_folder)

    def inputs(questions, pictures):
        chats = [chat(question, image is not None) for question, image in zip(questions, pictures, strict=True)]
        texts = [processor.apply_chat_template(each, add_generation_prompt=True) for each in chats]
        images = [image for image in pictures if image is not None]
        return processor(images=images or None, text=texts, padding=True, return_tensors="pt")

    def answers(questions, pictures, **options):
        given = inputs(questions, pictures)
        written = model.generate(**given, **{"max_new_tokens": 24, "do_sample": False} | options)
        return [cut(row) for row in written[:, given["input_ids"].shape[1] :].tolist()]

    return SimpleNamespace(model=model, processor=processor, inputs=inputs, answers=answers)


def cut(ids, end=0):
    return ids[: ids.index(end) + 1] if end in ids else ids


def chat(question, has_image=True):
    image = [{"type": "image"}] if has_image else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": question}]}]


QUESTIONS = [
    "What is in the picture?",
    "Describe the image.",
    "Please look very closely at all of the corners and say how many red circles there are.",
    "Hello!",
    "What colour?",
]


@pytest.fixture(scope="session")
def rows():
    """Questions and pictures, one of them without."""
    pictures = [picture(seed) for seed in range(len(QUESTIONS))]
    pictures[3] = None
    return QUESTIONS, pictures
