"""A folder for transformers: the answers are this package's, in batches, beams and bf16; bad input is told."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from scratch import picture
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline, set_seed

import cobra
from cobra.export.hf.modeling_cobra import CobraCache, CobraForConditionalGeneration
from cobra.export.hf.remote_code import remote_files
from cobra.models.checkpoint import read_checkpoint
from cobra.models.generation.options import GenerationOptions
from cobra.models.run_folder import find_checkpoint
from cobra.models.vlms import as_turn
from cobra.util.errors import UserError


def ours(vlm, questions, pictures, count=24):
    options = GenerationOptions(max_new_tokens=count)
    prompts = [vlm.tokenize(as_turn(vlm, question)) for question in questions]
    pixels = [None if image is None else vlm.preprocess([image]) for image in pictures]
    return [vlm.generate_batch_ids(each, [prompt], options)[0] for each, prompt in zip(pixels, prompts, strict=True)]


def test_the_folder_holds_weights_code_processor_and_parity(hf_folder, hf):
    names = {path.name for path in hf_folder.iterdir()}
    assert {"config.json", "model.safetensors", "parity.json", "README.md", "generation_config.json"} <= names
    assert set(remote_files()) <= names and "chat_template.jinja" in names
    parity = json.loads((hf_folder / "parity.json").read_text())
    assert parity["passed"] and parity["questions"] == parity["equal"] == 4
    assert type(hf.model) is CobraForConditionalGeneration
    umask = os.umask(0)
    os.umask(umask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in hf_folder.iterdir())


def test_uneven_prompts_in_one_batch_are_answered_as_one_by_one_and_as_here(hf, vlm, rows):
    together = hf.answers(*rows)
    alone = [hf.answers([question], [image])[0] for question, image in zip(*rows, strict=True)]
    assert together == alone == ours(vlm, *rows)
    assert len({len(ids) for ids in hf.inputs(*rows)["attention_mask"].sum(1, keepdim=True).tolist()}) == 1


def test_without_a_cache_the_answer_is_the_same(hf, rows):
    assert hf.answers(*rows, use_cache=False, max_new_tokens=6) == hf.answers(*rows, max_new_tokens=6)


def plain_beams(vlm, prompt, pixels, beams, count, end=0):
    """Beam search written down plainly: log-probabilities of this package, length penalty 1, best first."""
    running, finished = [(0.0, [])], []
    for _ in range(count):
        grown = []
        for total, ids in running:
            scores = vlm.prefill(pixels, [prompt + ids])[1][0].log_softmax(-1)
            best = scores.topk(2 * beams)
            grown += [
                (total + value, [*ids, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        grown.sort(key=lambda each: -each[0])
        running = []
        for place, (total, ids) in enumerate(grown[: 2 * beams]):
            if ids[-1] == end:
                if place < beams:
                    finished.append((total / len(ids), ids))
            elif len(running) < beams:
                running.append((total, ids))
        finished = sorted(finished, key=lambda each: -each[0])[:beams]
        if len(finished) == beams and finished[-1][0] >= running[0][0] / len(running[0][1]):
            break
    finished += [(total / len(ids), ids) for total, ids in running]
    return [ids for _, ids in sorted(finished, key=lambda each: -each[0])[:beams]]


def test_four_beams_are_those_of_a_plain_search(hf, vlm, rows):
    for question, image in zip(*(each[:2] for each in rows), strict=True):
        found = hf.answers([question], [image], num_beams=4, num_return_sequences=4, max_new_tokens=7)
        prompt = vlm.tokenize(as_turn(vlm, question))
        assert found == plain_beams(vlm, prompt, vlm.preprocess([image]), 4, 7)
    assert len({tuple(ids) for ids in found}) == 4


def test_beams_of_a_batch_are_those_of_its_rows(hf, rows):
    questions, pictures = (each[:3] for each in rows)
    together = hf.answers(questions, pictures, num_beams=3, max_new_tokens=8)
    assert together == [
        hf.answers([question], [image], num_beams=3, max_new_tokens=8)[0]
        for question, image in zip(questions, pictures, strict=True)
    ]


def test_samples_follow_from_the_seed(hf, rows):
    options = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 4, "max_new_tokens": 8}
    draws = []
    for seed in (1, 1, 2):
        set_seed(seed)
        draws.append(hf.answers(rows[0][:1], rows[1][:1], **options))
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(ids) for ids in draws[0]}) > 1


def test_bf16_keeps_the_decay_in_fp32_and_answers_as_here(hf_folder, hf, rows):
    model = AutoModelForImageTextToText.from_pretrained(hf_folder, dtype=torch.bfloat16)
    mixer = model.llm_backbone.llm.backbone.layers[0].mixer
    assert {mixer.A_log.dtype, mixer.D.dtype, mixer.dt_proj.bias.dtype} == {torch.float32}
    assert mixer.in_proj.weight.dtype == model.projector.projector[0].weight.dtype == torch.bfloat16
    given = hf.inputs(rows[0][:1], rows[1][:1])
    written = model.generate(**given, do_sample=False, max_new_tokens=12)[0, given["input_ids"].shape[1] :].tolist()
    half = cobra.load("cobra-tiny", device="cpu", dtype="bf16")
    assert written == ours(half, rows[0][:1], rows[1][:1], 12)[0][: len(written)]


def test_the_pipeline_answers(hf_folder, hf, rows):
    ask = pipeline("image-text-to-text", model=str(hf_folder))
    content = [{"type": "image", "image": rows[1][0]}, {"type": "text", "text": rows[0][0]}]
    found = ask(text=[{"role": "user", "content": content}], return_full_text=False, max_new_tokens=24)
    expected = hf.processor.decode(hf.answers(rows[0][:1], rows[1][:1])[0], skip_special_tokens=True)
    assert found[0]["generated_text"] == expected


def test_a_conversation_goes_on_from_its_cache(hf, rows):
    given = hf.inputs(rows[0][:1], rows[1][:1])
    first = hf.model(**given, use_cache=True)
    token = first.logits[:, -1:].argmax(-1)
    again = hf.model(input_ids=token, cache=first.cache, use_cache=True).logits[:, -1]
    whole = torch.cat([given["input_ids"], token], 1)
    torch.testing.assert_close(again, hf.model(input_ids=whole, pixel_values=given["pixel_values"]).logits[:, -1])
    assert first.cache.get_seq_length() == whole.shape[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_either_side_changes_no_score_and_no_loss(hf, vlm, rows, side):
    texts = [hf.processor.apply_chat_template([{"role": "user", "content": q}], tokenize=False) for q in rows[0]]
    hf.processor.tokenizer.padding_side = side
    try:
        given = hf.processor(text=texts, padding=True, return_tensors="pt")
    finally:
        hf.processor.tokenizer.padding_side = "left"
    mask = given["attention_mask"].bool()
    labels = given["input_ids"].masked_fill(~mask, -100)
    output = hf.model(**given, labels=labels)
    ids = [row[keep].tolist() for row, keep in zip(given["input_ids"], mask, strict=True)]
    for row, prompt in enumerate(ids):
        expected = vlm.forward(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(output.logits[row][mask[row]], expected, rtol=1e-4, atol=1e-4)
    if side == "right":
        expected = vlm.forward(input_ids=given["input_ids"], labels=labels).loss
        torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_all_that_is_trained(hf_folder, hf, rows):
    model = AutoModelForImageTextToText.from_pretrained(hf_folder).train()
    given = hf.inputs(rows[0][:2], rows[1][:2])
    model(**given, labels=given["input_ids"]).loss.backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    # Towers are read before their last block, and have no norm after it.
    assert all(name.startswith("vision_backbone") for name in missing)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "P"])
def test_pixels_are_those_of_training(hf, vlm, mode):
    image = picture(3).resize((70, 31)).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 60_000, 70 * 31).reshape(31, 70).astype("uint16"))
    found = hf.processor.image_processor(image)["pixel_values"]
    expected = torch.cat(list(vlm.preprocess([image]).values()), dim=1)
    assert torch.equal(found, expected)
    if mode in ("RGB", "RGBA"):
        array = np.array(image)
        for given in (array, array.transpose(2, 0, 1)):
            assert torch.equal(hf.processor.image_processor(given)["pixel_values"], expected)
            assert torch.equal(hf.processor.image_processor(torch.from_numpy(given))["pixel_values"], expected)


@pytest.mark.parametrize("shape", [(31, 70, 1), (1, 31, 70), (31, 70, 2)])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_other_arrays_are_refused_by_shape_and_kind(hf, shape, kind):
    array = np.zeros(shape, kind)
    expected = rf"an image is a .* of (torch\.)?{kind} \({shape[0]}.*expected a PIL image"
    for given in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=expected):
            hf.processor.image_processor(given)


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("What is it?", 1, "have 0 placeholders <image> and there are 1 images: give each image its placeholder"),
        ("<image>What is it?", 0, "have 1 placeholders <image> and there are 0 images"),
        ("<image><image>What?", 2, "text 0 has 2 placeholders <image>: this model reads one image"),
        ("What is <image>?", 1, "text 0 has <image> after its beginning.*put <image> first"),
        (["<image>a", "<image>b"], 1, "have 2 placeholders <image> and there are 1 images"),
    ],
)
def test_placeholders_that_do_not_match_the_images(hf, text, images, message):
    with pytest.raises(ValueError, match=message):
        hf.processor(images=[picture(seed) for seed in range(images)] or None, text=text)


def test_two_images_in_a_conversation(hf):
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]
    text = hf.processor.apply_chat_template([{"role": "user", "content": content}])
    with pytest.raises(ValueError, match="has 2 placeholders"):
        hf.processor(images=[picture(1), picture(2)], text=text)


def test_ids_and_pixels_that_do_not_match(hf, rows):
    given = hf.inputs(rows[0][:1], rows[1][:1])
    with pytest.raises(ValueError, match=r"have \[9\] placeholders of images \(id \d+\) and there are 0 images"):
        hf.model.generate(input_ids=given["input_ids"])
    with pytest.raises(ValueError, match="expected \\(images, 6, height, width\\)"):
        hf.model(**given | {"pixel_values": given["pixel_values"][:, :3]})
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        hf.model()
    with pytest.raises((TypeError, ValueError), match="past_key_values"):
        hf.model(**given, past_key_values=CobraCache())
    with pytest.raises(ValueError, match="takes a CobraCache"):
        hf.model.generate(**given, cache=object())
    with pytest.raises(ValueError, match="has no do_center_crop"):
        hf.processor.image_processor(picture(1), do_center_crop=True)


def test_a_saved_model_is_whole_again_with_its_code(hf, hf_folder, tmp_path, rows):
    hf.model.save_pretrained(tmp_path / "saved")
    hf.processor.save_pretrained(tmp_path / "saved")
    assert set(remote_files()) <= {path.name for path in (tmp_path / "saved").iterdir()}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in hf.model.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    text = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert processor(text=text)["input_ids"] == hf.processor(text=text)["input_ids"]
    assert "auto_map" in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_what_is_pushed_has_the_code(hf, monkeypatch):
    pushed = []
    hub = SimpleNamespace(create_repo=lambda *arguments, **options: SimpleNamespace(repo_id="me/x"))
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: ModelCard("card"))
    monkeypatch.setattr(
        type(hf.model), "_upload_modified_files", lambda self, folder, *a, **k: pushed.extend(os.listdir(folder))
    )
    hf.model.push_to_hub("me/x")
    assert set(remote_files()) | {"config.json", "model.safetensors"} <= set(pushed)


def test_the_folder_is_a_checkpoint_here(hf, hf_folder, vlm, tmp_path, rows):
    assert cobra.load(hf_folder, device="cpu").ask(rows[1][0], rows[0][0]) == vlm.ask(rows[1][0], rows[0][0])
    hf.model.save_pretrained(tmp_path / "saved")
    source = find_checkpoint(tmp_path / "saved")
    assert source.fields["model_id"] == "cobra-tiny"
    checkpoint = read_checkpoint(source.path)
    assert set(checkpoint) == {"vision_backbone", "llm_backbone", "projector"}
    assert vlm.load_from_checkpoint("finetune", tmp_path, source.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "of the model 'llava' of transformers, and of its models only 'cobra_vlm'"),
        ({"cobra_version": 2}, "version 2 of its form, and this package reads up to 1: pip install --upgrade"),
        ({"cobra_version": "x"}, "version 'x' of its form"),
    ],
)
def test_a_folder_of_another_model_or_version(hf_folder, tmp_path, change, message):
    values = json.loads((hf_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    (tmp_path / "model.safetensors").write_bytes((hf_folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=message):
        cobra.load(tmp_path)
    if change == {"cobra_version": 2}:
        with pytest.raises(ValueError, match="version 2 .*this code reads up to 1"):
            AutoModelForImageTextToText.from_pretrained(tmp_path)
    if "model_type" not in change:
        return
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cobra_vlm"}))
    with pytest.raises(ValueError, match="has no towers: it is not whole"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
