"""The format `transformers`: a folder that Hugging Face's library loads, and its answers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cobra.export.formats import ExportedModel
from cobra.export.hf.chat_template import chat_template
from cobra.export.hf.configuration_cobra import CobraConfig
from cobra.export.hf.processing_cobra import IMAGE_TOKEN, CobraImageProcessor, CobraProcessor
from cobra.export.hf.remote_code import AUTO_MAP, write_remote_code
from cobra.export.own_formats import write_safetensors
from cobra.export.parity import MAX_NEW_TOKENS, Answer, Question, batches, prove_answers
from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.models.checkpoint import MODULE_KEYS
from cobra.models.vlms import CobraVLM
from cobra.util.errors import UserError
from cobra.util.files import read_json, write_json

# Tokens of an answer at most where the user does not say.
_ANSWER = 512
# Letters by which byte-level tokenizers write the bytes that are in no text of UTF-8.
_NO_TEXT = "".join(map(chr, (*range(0xFF, 0xF4, -1), 0xC1, 0xC0)))


def write(model: ExportedModel, folder: Path) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`; raises a UserError for towers and mixers that are not the package's."""
    vlm = model.vlm
    tokenizer = _tokenizer_with_placeholder(vlm)
    processor = CobraProcessor(
        _image_processor(vlm, model.values["model"]["image_resize_strategy"]),
        tokenizer,
        chat_template=chat_template(vlm.llm_backbone.prompt_builder_fn),
        image_tokens=vlm.image_tokens,
    )
    processor.save_pretrained(folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            _add_auto_map(folder / name)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CobraConfig(
        **model.values,
        **ids,
        towers={name: asdict(spec) for name, spec in _tower_specs(vlm).items()},
        language_model=_mamba_fields(vlm),
        image_tokens=vlm.image_tokens,
        image_token_id=processor.image_token_id,
        dtype="float32",
        architectures=["CobraForConditionalGeneration"],
        auto_map={name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModelForImageTextToText")},
    )
    write_safetensors(folder / model.weights, {key: getattr(vlm, key).state_dict() for key in MODULE_KEYS})
    GenerationConfig(**ids, max_new_tokens=_ANSWER).save_pretrained(folder)
    write_remote_code(folder)
    return json.loads(config.to_json_string(use_diff=False)) | {"model_type": CobraConfig.model_type}


def prove(model: ExportedModel, folder: Path, questions: int) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    return prove_answers(model.vlm, lambda asked: answer(folder, asked), questions)


@torch.no_grad()
def answer(folder: Path, questions: Sequence[Question]) -> list[Answer]:
    """Answer questions with transformers, through the Auto classes, in batches that are padded on the left."""
    processor = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    answers: dict[int, Answer] = {}
    for numbers in batches(questions):
        part = [questions[number] for number in numbers]
        pictures = [each.picture for each in part if each.picture is not None]
        chats = [_chat(each) for each in part]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        inputs = processor(images=pictures or None, text=texts, padding=True, return_tensors="pt")
        written = model.generate(
            **inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, output_logits=True, return_dict_in_generate=True
        )
        sequences = written.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for row, (number, ids) in enumerate(zip(numbers, sequences, strict=True)):
            end = model.config.eos_token_id
            ids = ids[: ids.index(end) + 1] if end in ids else ids
            logits = [float(written.logits[step][row, token]) for step, token in enumerate(ids)]
            answers[number] = Answer(ids, written.logits[0][row].float(), logits)
    return [answers[number] for number in range(len(questions))]


def _chat(question: Question) -> list[dict[str, Any]]:
    image = [] if question.picture is None else [{"type": "image"}]
    return [{"role": "user", "content": [*image, {"type": "text", "text": question.text}]}]


def _tower_specs(vlm: CobraVLM) -> dict[str, TowerSpec]:
    spec = vision_spec(vlm.vision_backbone.identifier)
    towers = {name: tower for name, tower in spec.towers.items() if isinstance(tower, TowerSpec)}
    if len(towers) < len(spec.towers):
        raise UserError(
            f"the vision backbone {vlm.vision_backbone.identifier!r} has towers that are not timm's, and the format "
            "transformers holds only those: export it as safetensors"
        )
    if len({tower.image_size for tower in towers.values()}) > 1:
        raise UserError(
            f"the towers of {vlm.vision_backbone.identifier!r} read images of different sizes, and the format "
            "transformers holds pixels of one size: export it as safetensors"
        )
    return towers


def _mamba_fields(vlm: CobraVLM) -> dict[str, Any]:
    config = vlm.llm_backbone.llm.config
    if config.mixer != "Mamba1":
        raise UserError(
            f"the language model's mixer is {config.mixer!r}, and the code of the format transformers has Mamba1 "
            "alone: export it as safetensors"
        )
    return asdict(config)


def _image_processor(vlm: CobraVLM, strategy: str) -> CobraImageProcessor:
    towers = vlm.vision_backbone.towers
    return CobraImageProcessor(
        size=towers[0].image_size,
        resize_strategy=strategy,
        image_mean=[tower.pixel_mean for tower in towers],
        image_std=[tower.pixel_std for tower in towers],
    )


def _add_auto_map(path: Path) -> None:
    """Name the code in a processor's file, and in that of the image processor inside it."""
    values = read_json(path, "the processor's configuration")
    values["auto_map"] = {name: AUTO_MAP[name] for name in ("AutoProcessor", "AutoImageProcessor")}
    if isinstance(values.get("image_processor"), dict):
        values["image_processor"]["auto_map"] = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    write_json(path, values)


def _tokenizer_with_placeholder(vlm: CobraVLM) -> PreTrainedTokenizerBase:
    """Return the tokenizer with `<image>` as a token, on an id that the padded vocabulary has and no text gives.

    The first free row of the padded vocabulary; where there is none, a byte that is no part of any text.
    """
    tokenizer = vlm.llm_backbone.tokenizer
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    token = len(tokenizer)
    if token >= vlm.llm_backbone.llm.config.padded_vocab_size:
        letter = next((letter for letter in _NO_TEXT if letter in vocabulary), None)
        if letter is None:
            raise UserError(
                f"all {token} rows of the embedding belong to tokens of text, so that none is left for the placeholder "
                f"{IMAGE_TOKEN}: export the model as safetensors"
            )
        token = vocabulary.pop(letter)
        vocabulary[IMAGE_TOKEN] = token
    added = {"id": token, "content": IMAGE_TOKEN, "special": True, "normalized": False}
    description["added_tokens"].append(added | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    description["added_tokens"].sort(key=lambda each: each["id"])
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        **{name: getattr(tokenizer, name) for name in names},
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=vlm.max_text_length + vlm.image_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
