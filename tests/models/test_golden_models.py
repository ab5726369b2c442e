"""The whole model against outputs of the original Cobra: names, stages, forward passes and gradients."""

import pytest
import torch
from golden_set import LOGITS, LOSS, PIXELS, assert_norms, by_tower, close, close_to_some, gradient_norms, rows_batch

from cobra.models.checkpoint import read_checkpoint


def test_golden_set_up_is_the_loaded_models(golden, golden_vlm):
    meta, vlm = golden.meta, golden_vlm
    tokenizer, config = vlm.llm_backbone.tokenizer, vlm.llm_backbone.llm.config
    assert (config.d_model, config.n_layer) == (meta["llm"]["d_model"], meta["llm"]["n_layer"])
    assert (config.vocab_size, config.padded_vocab_size) == (
        meta["llm"]["vocab_size_config"],
        meta["llm"]["vocab_size_padded"],
    )
    for key in ("d_state", "d_conv", "expand"):
        assert getattr(config, key) == meta["llm"]["ssm_cfg"].get(key, getattr(type(config), key))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (meta["pad_token_id"], meta["eos_token_id"])
    assert vlm.llm_backbone.tokenizer.pad_token_id == meta["pad_token_id"]
    assert tokenizer.model_max_length == meta["llm_max_length"]
    assert vlm.vision_backbone.num_patches == meta["num_patches"]
    assert (vlm.model_id, vlm.arch_specifier) == (meta["model_id"], meta["arch_specifier"])
    assert not vlm.training and not any(parameter.requires_grad for parameter in vlm.parameters())


def test_golden_parameters_have_cobras_names_shapes_and_dtypes(golden, golden_vlm):
    observed = golden.json("observed.json")
    expected = {name: (shape, dtype) for name, (shape, dtype) in observed["vlm_state_dict"].items()}
    state = golden_vlm.state_dict()
    assert {name: (list(value.shape), str(value.dtype)) for name, value in state.items()} == expected
    # Cobra's change under activation checkpointing; ours stay, and so do the names in a checkpoint.
    golden_vlm.llm_backbone.llm.gradient_checkpointing = True
    for name in observed["named_parameters_with_activation_checkpointing"]:
        assert name.replace("_checkpoint_wrapped_module.", "") in dict(golden_vlm.named_parameters())


def test_golden_checkpoint_holds_cobras_names(golden, golden_vlm):
    checkpoint = read_checkpoint(golden.path("run") / "checkpoints" / "latest-checkpoint.pt")
    names = {name for tensors in checkpoint.values() for name in tensors}
    assert names >= set(golden.json("observed.json")["checkpoint_key_sample"])
    for module, tensors in checkpoint.items():
        loaded = getattr(golden_vlm, module).state_dict()
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items()), module


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


def assert_output(output, arrays):
    assert list(output.logits.shape) == arrays["logits_shape"].tolist()
    close(output.logits[..., :: int(arrays["logits_vocab_stride"])], arrays["logits_strided"], **LOGITS)
    close(output.logits[:, -1], arrays["logits_last_full"], **LOGITS)
    close(output.logits.double().logsumexp(-1), arrays["logsumexp"], **LOGITS)


def fuse(vlm, batch):
    return vlm._embed(batch["input_ids"], batch["pixel_values"], batch["labels"], batch["multimodal_indices"])


@torch.no_grad()
def test_golden_forward_mixed(golden, golden_vlm):
    arrays, batch = golden.npz("vlm_forward_mixed.npz"), golden.mixed_batch()
    patches = golden_vlm.vision_backbone(golden.pixels(arrays))
    close(patches, arrays["patch_features"], **LOGITS)
    close(golden_vlm.projector(patches), arrays["projected"], **LOGITS)
    output = golden_vlm(**batch)
    assert_output(output, arrays)
    assert output.loss.item() == pytest.approx(arrays["loss"].item(), **LOSS)
    embeds, labels = fuse(golden_vlm, batch)
    close(embeds, arrays["fused_embeds"], **LOGITS)
    assert torch.equal(labels, arrays["fused_labels"])


@torch.no_grad()
def test_golden_rows_with_an_image_come_first(golden, golden_vlm):
    batch, order = golden.mixed_batch(), golden.json("observed.json")["fused_batch_order"]
    _, labels = fuse(golden_vlm, batch)
    patches = labels.shape[1] - batch["labels"].shape[1]
    for place, row in enumerate(order):
        first = patches if row in batch["multimodal_indices"] else 0
        text = labels[place, first : first + batch["labels"].shape[1]]
        assert torch.equal(text, batch["labels"][row]), row


@torch.no_grad()
def test_golden_mixed_batch_without_labels(golden, golden_vlm):
    """Cobra crashes here (observed.json, mixed_without_labels); ours returns the same logits without a loss."""
    output = golden_vlm(**{**golden.mixed_batch(), "labels": None})
    assert output.loss is None
    assert_output(output, golden.npz("vlm_forward_mixed.npz"))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixed", "multimodal"])
def test_golden_forward_from_the_rows_and_image_files(golden, golden_vlm, golden_data, kind):
    arrays = golden.npz(f"vlm_forward_{kind}.npz")
    indices = golden.json(f"collator_{kind}.json")["dataset_indices"]
    batch = rows_batch(golden_data, golden_data.finetune, indices)
    for key in ("input_ids", "labels", "attention_mask", "multimodal_indices"):
        assert torch.equal(batch[key], arrays[key]), key
    if kind == "mixed":
        stored = by_tower(golden.mixed_batch()["pixel_values"])
        for name, pixels in by_tower(batch["pixel_values"]).items():
            close(pixels, stored[name], **PIXELS)
    output = golden_vlm(**batch)
    assert_output(output, arrays)
    assert output.loss.item() == pytest.approx(arrays["loss"].item(), **LOSS)
    assert torch.equal(fuse(golden_vlm, batch)[1], arrays["fused_labels"])


def test_golden_text_only(golden, golden_vlm, golden_data):
    expected = golden.json("vlm_text_only.json")
    indices = golden.json("collator_text_only.json")["dataset_indices"]
    batch = rows_batch(golden_data, golden_data.finetune, indices)
    with torch.no_grad():
        output = golden_vlm(**batch)
    assert list(output.logits.shape) == expected["logits_shape"]
    close(output.logits.double().logsumexp(-1), torch.tensor(expected["logsumexp"], dtype=torch.double), **LOGITS)
    loss, norms = gradient_norms(golden_vlm, "finetune", batch)
    assert loss == pytest.approx(expected["loss"], **LOSS)
    # Cobra keeps zeros for modules that an all-text batch does not reach; ours may keep no gradient at all.
    assert_norms({k: v or 0.0 for k, v in norms.items()}, {k: v or 0.0 for k, v in expected["grad_norms"].items()})


@pytest.mark.parametrize("kind", ["mixed", "multimodal"])
def test_golden_finetune_gradients(golden, golden_vlm, golden_data, kind):
    expected = golden.json(f"vlm_grad_norms_{kind}.json")
    if kind == "mixed":
        batch = golden.mixed_batch()
    else:
        indices = golden.json("collator_multimodal.json")["dataset_indices"]
        batch = rows_batch(golden_data, golden_data.finetune, indices)
    loss, norms = gradient_norms(golden_vlm, expected["stage"], batch)
    assert loss == pytest.approx(float(expected["loss"]), **LOSS)
    assert_norms(norms, expected["norms"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_golden_sampled_gradients(golden, golden_vlm, checkpointing):
    golden_vlm.llm_backbone.llm.gradient_checkpointing = checkpointing
    gradient_norms(golden_vlm, golden.json("vlm_grad_norms_mixed.json")["stage"], golden.mixed_batch())
    parameters = dict(golden_vlm.named_parameters())
    samples = golden.npz("vlm_grads_mixed_sample.npz")
    size = max(len(sample) for sample in samples.values())
    for name, expected in samples.items():
        flat = parameters[name].grad.flatten()
        sample = flat[:: max(1, flat.numel() // size)][:size]
        close(sample, expected, atol=1e-4 * max(expected.abs().max().item(), 1e-12), rtol=0)


def test_golden_align_stage(golden, golden_vlm, golden_data):
    """The set does not hold the batch's indices: its README says rows 0 to 2, so the rows from the first on."""
    expected = golden.json("vlm_align_stage.json")
    batches = [
        rows_batch(golden_data, golden_data.align, range(count)) for count in range(1, len(golden_data.align) + 1)
    ]
    with torch.no_grad():
        losses = [golden_vlm(**batch).loss.item() for batch in batches]
    nearest = min(range(len(losses)), key=lambda index: abs(losses[index] - expected["loss"]))
    loss, norms = gradient_norms(golden_vlm, "align", batches[nearest])
    assert loss == pytest.approx(expected["loss"], **LOSS)
    assert_norms(norms, expected["grad_norms"])
    assert {name for name, norm in norms.items() if norm is not None} == expected["grad_norms"].keys()


def test_golden_full_finetune_stage(golden, golden_vlm):
    expected = golden.json("vlm_full_finetune_stage.json")
    loss, norms = gradient_norms(golden_vlm, "full-finetune", golden.mixed_batch())
    assert loss == pytest.approx(expected["loss"], **LOSS)
    assert_norms(norms, expected["grad_norms"])


def test_golden_projectors(golden, golden_vlm, golden_projector):
    from cobra.models.vlms.cobra import build_projector

    name = golden_projector
    expected, arrays = golden.json("projectors.json")[name], golden.npz("projectors.npz")
    patches = arrays["patch_features"]
    assert patches.shape[-1] == expected["init_seed"]
    projector = build_projector(expected["arch_specifier"], patches.shape[-1], golden.meta["llm"]["d_model"])
    assert type(projector).__name__ == expected["cls"]
    assert {key: list(value.shape) for key, value in projector.state_dict().items()} == expected["state_dict"]
    for key, value in projector.state_dict().items():
        assert value.double().sum().item() == pytest.approx(expected["init"][key]["sum"], abs=1e-4)
        first = expected["init"][key]["first4"]
        assert value.flatten()[: len(first)].tolist() == pytest.approx(first, abs=1e-6)
    # Those of the run's own projector are in its checkpoint.
    weights = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/p")}
    projector.load_state_dict(weights or golden_vlm.projector.state_dict())
    with torch.no_grad():
        output = projector(patches)
    assert list(output.shape) == expected["out_shape"]
    assert output.double().norm().item() == pytest.approx(expected["out_norm"], rel=1e-5)
    assert output.double().sum().item() == pytest.approx(expected["out_sum"], abs=1e-5 * output.numel())
    close_to_some(output, arrays[f"{name}//out"], 1, **LOGITS)
    golden_vlm.projector = projector
    loss, norms = gradient_norms(golden_vlm, "finetune", golden.mixed_batch())
    assert loss == pytest.approx(expected["vlm_loss"], **LOSS)
    norms = {key.removeprefix("projector."): norm for key, norm in norms.items() if key.startswith("projector.")}
    assert norms.keys() == expected["grad_norms"].keys()
    assert_norms(norms, expected["grad_norms"])
    assert list(fuse(golden_vlm, golden.mixed_batch())[0].shape) == expected["fused_shape"]


@torch.no_grad()
def test_golden_small_ldp_projector(golden):
    from cobra.util import nn_utils

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
