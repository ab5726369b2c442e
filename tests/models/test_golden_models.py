"""The model against outputs of the original Cobra. Tolerances are those of the golden set's README."""

import pytest
import torch
from PIL import Image

from cobra.models.backbones.vision import build_transform
from cobra.models.mamba import MambaState
from cobra.models.vlms import GenerationOptions
from cobra.models.vlms.generation import keep_top_k, keep_top_p
from cobra.util import nn_utils

LOGITS = dict(atol=5e-4, rtol=0)


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **tolerance, check_dtype=False)


def strided(logits, reference):
    """Every k-th entry of the vocabulary, as many as the reference holds."""
    return logits[..., :: logits.shape[-1] // reference.shape[-1]]


def batch_of(golden, vlm, arrays):
    """The mixed batch: the fixture holds pixels of its image rows only."""
    images = arrays["multimodal_indices"]

    def spread(pixels):
        whole = torch.zeros(len(arrays["input_ids"]), *pixels.shape[1:])
        whole[images] = pixels
        return whole

    pixels = golden.pixels(arrays)
    pixels = {k: spread(v) for k, v in pixels.items()} if isinstance(pixels, dict) else spread(pixels)
    return dict(
        input_ids=arrays["input_ids"],
        attention_mask=arrays["attention_mask"],
        labels=arrays["labels"],
        pixel_values=pixels,
        multimodal_indices=images,
    )


def rows_batch(data, dataset, indices):
    return data.collator([dataset[index] for index in indices])


def gradient_norms(vlm, stage, batch):
    vlm.freeze_backbones(stage)
    vlm.train()
    loss = vlm(**batch).loss
    loss.backward()
    norms = {name: None if p.grad is None else p.grad.norm().item() for name, p in vlm.named_parameters()}
    return loss, norms


def assert_norms(norms, expected):
    for name, value in expected.items():
        if value is None:
            assert norms[name] is None, name
        elif value < 1e-12:
            assert (norms[name] or 0.0) < 1e-9, name
        else:
            assert norms[name] == pytest.approx(value, rel=1e-3), name


def test_golden_parameters_have_cobras_names_and_shapes(golden, golden_vlm):
    expected = golden.json("observed.json")["vlm_state_dict"]
    assert {name: list(value.shape) for name, value in golden_vlm.state_dict().items()} == {
        name: shape for name, (shape, _) in expected.items()
    }


def test_golden_stages_train_the_same_parameters(golden, golden_vlm):
    stages = {
        "finetune": golden.json("observed.json")["vlm_named_parameters_requires_grad_finetune"],
        "align": golden.json("vlm_align_stage.json")["requires_grad"],
    }
    for stage, expected in stages.items():
        golden_vlm.freeze_backbones(stage)
        actual = {name: parameter.requires_grad for name, parameter in golden_vlm.named_parameters()}
        assert actual == expected, stage


def test_golden_trainable_modules(golden, golden_vlm):
    golden_vlm.freeze_backbones("finetune")
    assert golden_vlm.trainable_module_keys == golden.json("observed.json")["trainable_module_keys"]
    golden_vlm.freeze_backbones("full-finetune")
    assert golden_vlm.trainable_module_keys == golden.json("vlm_full_finetune_stage.json")["trainable_module_keys"]


def test_golden_single_token_answers(golden, golden_vlm):
    assert golden_vlm.string2idx == golden.json("tokenizer_facts.json")["string2idx"]


@torch.no_grad()
def test_golden_llm(golden, golden_vlm):
    arrays = golden.npz("llm.npz")
    output = golden_vlm(input_ids=arrays["input_ids"], labels=arrays["labels"])
    close(output.logits, arrays["logits"], **LOGITS)
    close(output.logits[:, -1:], arrays["last_logits"], **LOGITS)
    close(output.loss, arrays["loss"], rtol=1e-5, atol=0)
    output = golden_vlm(inputs_embeds=arrays["inputs_embeds"], labels=arrays["embeds_labels"])
    close(strided(output.logits, arrays["embeds_logits_stride4"]), arrays["embeds_logits_stride4"], **LOGITS)
    close(output.loss, arrays["embeds_loss"], rtol=1e-5, atol=0)


@torch.no_grad()
def test_golden_llm_layers(golden, golden_vlm):
    arrays = golden.npz("llm_layers.npz")
    llm = golden_vlm.llm_backbone.llm
    hidden, residual = llm.embed(arrays["input_ids"]), None
    close(hidden, arrays["embedding"], **LOGITS)
    for index, block in enumerate(llm.backbone.layers):
        hidden, residual = block(hidden, residual)
        close(hidden, arrays[f"layer{index}_hidden"], **LOGITS)
        close(residual, arrays[f"layer{index}_residual"], **LOGITS)
    close(llm.backbone.norm_f(hidden + residual), arrays["final_norm_hidden"], **LOGITS)


@torch.no_grad()
def test_golden_mixer_prefill_and_steps(golden, golden_vlm):
    arrays = golden.npz("mixer.npz")
    llm = golden_vlm.llm_backbone.llm
    mixer = llm.backbone.layers[int(arrays["layer"])].mixer
    x = arrays["x"]
    close(mixer(x), arrays["y_full"], **LOGITS)
    prefill = arrays["y_prefill6"].shape[1]
    state = MambaState.zeros(llm.config, len(x), "cpu").layer(0)
    close(mixer(x[:, :prefill], state), arrays["y_prefill6"], **LOGITS)
    close(state.conv, arrays["conv_state_after6"], **LOGITS)
    close(state.ssm, arrays["ssm_state_after6"], **LOGITS)
    steps = [mixer(x[:, step : step + 1], state) for step in range(prefill, x.shape[1])]
    close(torch.cat(steps, 1), arrays["y_steps"].reshape(len(x), -1, x.shape[-1]), **LOGITS)
    close(state.conv, arrays["conv_state_after9"], **LOGITS)
    close(state.ssm, arrays["ssm_state_after9"], **LOGITS)
    state = MambaState.zeros(llm.config, len(x), "cpu").layer(0)
    mixer(x[:, :2], state)
    close(state.conv, arrays["conv_state_after_prefill2"], **LOGITS)


@torch.no_grad()
def test_golden_forward_mixed(golden, golden_vlm):
    arrays = golden.npz("vlm_forward_mixed.npz")
    patches = golden_vlm.vision_backbone(golden.pixels(arrays))
    close(patches, arrays["patch_features"], **LOGITS)
    close(golden_vlm.projector(patches), arrays["projected"], **LOGITS)
    batch = batch_of(golden, golden_vlm, arrays)
    output = golden_vlm(**batch)
    assert list(output.logits.shape) == arrays["logits_shape"].tolist()
    close(output.logits[..., :: int(arrays["logits_vocab_stride"])], arrays["logits_strided"], **LOGITS)
    close(output.logits[:, -1], arrays["logits_last_full"], **LOGITS)
    close(output.logits.double().logsumexp(-1), arrays["logsumexp"], **LOGITS)
    close(output.loss, arrays["loss"], rtol=1e-5, atol=0)
    embeds, labels = golden_vlm._embed(
        batch["input_ids"], batch["pixel_values"], batch["labels"], batch["multimodal_indices"]
    )
    close(embeds, arrays["fused_embeds"], **LOGITS)
    assert torch.equal(labels, arrays["fused_labels"])


@torch.no_grad()
def test_golden_mixed_batch_without_labels(golden, golden_vlm):
    """Cobra crashes here (observed.json, mixed_without_labels); ours returns the same logits without a loss."""
    arrays = golden.npz("vlm_forward_mixed.npz")
    output = golden_vlm(**{**batch_of(golden, golden_vlm, arrays), "labels": None})
    assert output.loss is None
    close(output.logits[..., :: int(arrays["logits_vocab_stride"])], arrays["logits_strided"], **LOGITS)


@torch.no_grad()
def test_golden_forward_multimodal(golden, golden_vlm, golden_data):
    arrays = golden.npz("vlm_forward_multimodal.npz")
    indices = golden.json("collator_multimodal.json")["dataset_indices"]
    batch = rows_batch(golden_data, golden_data.finetune, indices)
    assert torch.equal(batch["input_ids"], arrays["input_ids"])
    assert torch.equal(batch["multimodal_indices"], arrays["multimodal_indices"])
    output = golden_vlm(**batch)
    assert list(output.logits.shape) == arrays["logits_shape"].tolist()
    close(output.logits[..., :: int(arrays["logits_vocab_stride"])], arrays["logits_strided"], **LOGITS)
    close(output.logits[:, -1], arrays["logits_last_full"], **LOGITS)
    close(output.logits.double().logsumexp(-1), arrays["logsumexp"], **LOGITS)
    close(output.loss, arrays["loss"], rtol=1e-5, atol=0)


def test_golden_text_only(golden, golden_vlm, golden_data):
    expected = golden.json("vlm_text_only.json")
    indices = golden.json("collator_text_only.json")["dataset_indices"]
    batch = rows_batch(golden_data, golden_data.finetune, indices)
    with torch.no_grad():
        output = golden_vlm(**batch)
    assert list(output.logits.shape) == expected["logits_shape"]
    close(output.logits.double().logsumexp(-1), torch.tensor(expected["logsumexp"], dtype=torch.double), **LOGITS)
    loss, norms = gradient_norms(golden_vlm, "finetune", batch)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    # Cobra keeps zeros for modules that an all-text batch does not reach; ours may keep no gradient at all.
    assert_norms({k: v or 0.0 for k, v in norms.items()}, {k: v or 0.0 for k, v in expected["grad_norms"].items()})


@pytest.mark.parametrize("kind", ["mixed", "multimodal"])
def test_golden_finetune_gradients(golden, golden_vlm, golden_data, kind):
    expected = golden.json(f"vlm_grad_norms_{kind}.json")
    if kind == "mixed":
        batch = batch_of(golden, golden_vlm, golden.npz("vlm_forward_mixed.npz"))
    else:
        indices = golden.json("collator_multimodal.json")["dataset_indices"]
        batch = rows_batch(golden_data, golden_data.finetune, indices)
    loss, norms = gradient_norms(golden_vlm, expected["stage"], batch)
    assert loss.item() == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert_norms(norms, expected["norms"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_golden_sampled_gradients(golden, golden_vlm, checkpointing):
    golden_vlm.llm_backbone.llm.gradient_checkpointing = checkpointing
    gradient_norms(golden_vlm, "finetune", batch_of(golden, golden_vlm, golden.npz("vlm_forward_mixed.npz")))
    parameters = dict(golden_vlm.named_parameters())
    for name, expected in golden.npz("vlm_grads_mixed_sample.npz").items():
        flat = parameters[name].grad.flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64]
        close(sample, expected, atol=1e-4 * max(expected.abs().max().item(), 1e-12), rtol=0)


def test_golden_align_stage(golden, golden_vlm, golden_data):
    expected = golden.json("vlm_align_stage.json")
    batch = rows_batch(golden_data, golden_data.align, range(3))
    loss, norms = gradient_norms(golden_vlm, "align", batch)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert_norms(norms, expected["grad_norms"])


def test_golden_full_finetune_stage(golden, golden_vlm):
    expected = golden.json("vlm_full_finetune_stage.json")
    batch = batch_of(golden, golden_vlm, golden.npz("vlm_forward_mixed.npz"))
    loss, norms = gradient_norms(golden_vlm, "full-finetune", batch)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert_norms(norms, expected["grad_norms"])


PROJECTORS = ["linear", "gelu-mlp", "fused-gelu-mlp", "fused-ldpnet"]


@pytest.mark.parametrize("name", PROJECTORS)
def test_golden_projectors(golden, golden_vlm, name):
    from cobra.models.vlms.cobra import build_projector

    expected, arrays = golden.json("projectors.json")[name], golden.npz("projectors.npz")
    patches = arrays["patch_features"]
    projector = build_projector(expected["arch_specifier"], patches.shape[-1], golden.meta["llm"]["d_model"])
    assert type(projector).__name__ == expected["cls"]
    for key, value in projector.state_dict().items():
        assert list(value.shape) == expected["state_dict"][key]
        assert value.double().sum().item() == pytest.approx(expected["init"][key]["sum"], abs=1e-4)
        assert value.flatten()[:4].tolist() == pytest.approx(expected["init"][key]["first4"], abs=1e-6)
    weights = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/p")}
    projector.load_state_dict(weights or golden_vlm.projector.state_dict())
    with torch.no_grad():
        output = projector(patches)
    assert list(output.shape) == expected["out_shape"]
    reference = arrays[f"{name}//out"]
    close(output[:, :: -(-output.shape[1] // reference.shape[1])], reference, **LOGITS)
    golden_vlm.projector = projector
    golden_vlm.freeze_backbones("finetune")
    batch = batch_of(golden, golden_vlm, golden.npz("vlm_forward_mixed.npz"))
    loss = golden_vlm(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected["vlm_loss"], rel=1e-5)
    assert_norms({k: p.grad.norm().item() for k, p in projector.named_parameters()}, expected["grad_norms"])


@torch.no_grad()
def test_golden_small_ldp_projector(golden):
    arrays = {key.removeprefix("ldp_small/"): value for key, value in golden.npz("projectors.npz").items()}
    inputs = {name: value for name, value in arrays.items() if name.startswith("x")}
    weights = {name: arrays[name] for name in arrays if name.startswith("projector.")}
    if not inputs:
        pytest.skip("the set has no small downsampling projector")
    for name, x in inputs.items():
        y = arrays[name.replace("x", "y", 1)]
        projector = nn_utils.FusedLDPProjector(x.shape[-1], y.shape[-1])
        projector.load_state_dict(weights)
        close(projector(x), y, **LOGITS)


def generation_cases(golden):
    return golden.json("generation.json")


def test_golden_generation(golden, golden_vlm):
    pixels = golden.pixels(golden.npz("generation.npz"))
    ran = 0
    for case in generation_cases(golden):
        if "kwargs" not in case:
            continue
        prompt = golden_vlm.tokenize(case["prompt"])
        assert prompt == case["input_ids"], case["tag"]
        ids = golden_vlm.generate_batch_ids(pixels, [prompt], GenerationOptions(**case["kwargs"]))[0]
        assert ids == case["new_ids"], case["tag"]
        text = golden_vlm.generate_batch(pixels, [case["prompt"]], **case["kwargs"])[0]
        assert text == case["text"].strip(), case["tag"]
        ran += 1
    assert ran > 0


def test_golden_generation_of_the_llm_alone(golden, golden_vlm):
    for case in generation_cases(golden):
        if "kwargs" in case:
            continue
        batched = isinstance(case["input_ids"][0], list)
        prompts = case["input_ids"] if batched else [case["input_ids"]]
        expected = case["new_ids"] if batched else [case["new_ids"]]
        # No stop token: an id that no token has.
        options = GenerationOptions(max_new_tokens=len(expected[0]), eos_token_id=-1)
        assert golden_vlm.generate_batch_ids(None, prompts, options) == expected, case["tag"]


def test_golden_run_directory_generates_from_the_image_file(golden, golden_vlm):
    case = next(case for case in generation_cases(golden) if "vlm.generate_text" in case)
    image = Image.open(sorted(golden.path("images").iterdir())[0])
    assert golden_vlm.generate(image, case["prompt"], **case["kwargs"]) == case["vlm.generate_text"].strip()


@torch.no_grad()
def test_golden_generation_scores(golden, golden_vlm):
    arrays = golden.npz("generation.npz")
    prompt = arrays["input_ids"][0].tolist()
    state, scores = golden_vlm.prefill(golden.pixels(arrays), [prompt])
    close(scores[0], arrays["first_scores"], **LOGITS)
    llm = golden_vlm.llm_backbone.llm
    for token, expected in zip(arrays["new_ids"], arrays["step_scores_stride4"], strict=True):
        close(strided(scores[0], expected), expected, **LOGITS)
        scores = llm.logits(llm(llm.embed(token.view(1, 1)), state)[:, -1])


def test_golden_sampling_filters(golden):
    filters = golden.json("sampling_filters.json")
    file, _, key = filters["logits"].partition(":")
    scores = golden.npz(file)[key].unsqueeze(0)
    for rule, kept in filters["kept"].items():
        name, _, value = rule.partition("=")
        filtered = keep_top_p(scores, float(value)) if name == "top_p" else keep_top_k(scores, int(value))
        assert filtered.isfinite()[0].nonzero().flatten().tolist() == kept, rule


def test_golden_transforms(golden, golden_registered):
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    facts, arrays = golden.json("transforms.json"), golden.npz("transforms.npz")
    for key, expected in arrays.items():
        strategy, image, tower = key.split("/")
        config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(golden.meta[tower]["timm"]).to_dict())
        transform = build_transform(strategy, facts["image_size"], config["mean"], config["std"])
        with Image.open(golden.path("images") / image) as picture:
            close(transform(picture.convert("RGB")), expected, atol=1e-5, rtol=0)


def test_golden_vision_facts(golden, golden_vlm):
    facts, vision = golden.json("observed.json")["vision"], golden_vlm.vision_backbone
    assert vision.num_patches == facts["num_patches"]
    assert vision.embed_dim == facts["embed_dim"]
    assert list(vision.default_image_resolution) == facts["default_image_resolution"]


def test_golden_position_embeddings_are_resampled_alike(golden):
    """The real towers' position embeddings are brought to 384 px by timm as Cobra's older timm did."""
    from timm.layers import resample_abs_pos_embed

    arrays = golden.npz("pos_embed_resample.npz")
    source, target = sorted(arrays, key=lambda name: -arrays[name].shape[1])
    side = int(arrays[target].shape[1] ** 0.5)
    resampled = resample_abs_pos_embed(arrays[source], [side, side], num_prefix_tokens=0)
    close(resampled, arrays[target], atol=1e-5, rtol=0)


def test_golden_stock_recipe_is_the_registered_one(golden):
    import draccus

    from cobra.conf import DatasetConfig, ModelConfig

    stock = golden.json("stock_cobra+3b_config.json")
    for key, base in (("model", ModelConfig), ("dataset", DatasetConfig)):
        config = base.get_choice_class(stock[key]["type"])()
        assert draccus.encode(config, declared_type=base) == stock[key]
