"""Operations counted from sizes against those that torch counts while a model trains, and peaks by name."""

import math

import pytest
import torch
import torch.nn.functional as F
from scratch import scratch_vlm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cobra.training.flops import count_flops, flops_per_step, peak_tflops

ROWS, TEXT, PATCHES = 3, 120, 9


def convolution_backward(grad, inputs, weight, *rest, out_shape):
    """Operations of both gradients of a convolution; torch 2.14's own count takes a weight's for dense, not grouped."""
    wanted = rest[-1]
    return sum(wanted[:2]) * 2 * grad[0] * math.prod(grad[2:]) * math.prod(weight)


def counted(vlm) -> float:
    """Operations of the matrix products of one pass; the loss is taken the plain way, which torch can look into."""
    generator = torch.Generator().manual_seed(0)
    pixels = {name: torch.randn(ROWS, 3, 48, 48, generator=generator) for name in ("dino", "siglip")}
    ids = torch.randint(2, 700, (ROWS, TEXT), generator=generator)
    counts = {torch.ops.aten.convolution_backward: convolution_backward}
    # The kernel that joins the products of attention is not counted on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=counts) as counter:
        logits = vlm(input_ids=ids, pixel_values=pixels).logits
        F.cross_entropy(logits[:, vlm.image_tokens :].flatten(0, 1), ids.flatten()).backward()
    return counter.get_total_flops()


def planned(vlm, **options) -> float:
    """The same from sizes; the scan is no matrix product, and every position's scores are formed."""
    positions = ROWS * (TEXT + vlm.image_tokens)
    model = count_flops(vlm)
    return flops_per_step(model, ROWS, positions, positions, **options) - model.scan.total * positions


@pytest.mark.fault("D5")
@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
@pytest.mark.parametrize("architecture", ["linear", "gelu-mlp", "no-align+fused-gelu-mlp", "fused-ldpnet"])
def test_operations_are_those_that_torch_counts(architecture, stage):
    vlm = scratch_vlm(arch_specifier=architecture)
    vlm.freeze_backbones(stage)
    vlm.train()
    assert planned(vlm) == counted(vlm)


@pytest.mark.fault("D5")
@pytest.mark.parametrize(
    ("architecture", "positions"),
    [("linear", 9), ("gelu-mlp", 9), ("no-align+fused-gelu-mlp", 9), ("fused-ldpnet", 196)],
)
def test_positions_of_an_image_are_those_that_the_projector_leaves(architecture, positions):
    vlm = scratch_vlm(arch_specifier=architecture)
    patches = torch.zeros(1, vlm.vision_backbone.num_patches, vlm.vision_backbone.embed_dim)
    assert vlm.image_tokens == vlm.projector(patches).shape[1] == positions


def test_operations_of_recomputed_blocks_are_counted_apart():
    vlm = scratch_vlm()
    vlm.freeze_backbones("finetune")
    vlm.train()
    plain = counted(vlm)
    vlm.llm_backbone.llm.gradient_checkpointing = True
    llm, positions = vlm.llm_backbone.llm, ROWS * (TEXT + PATCHES)
    # Recomputation stops where nothing more is needed: before out_proj, unless a kernel does all in one.
    outputs = sum(2 * block.mixer.out_proj.weight.numel() * positions for block in llm.backbone.layers)
    scan = count_flops(vlm).scan.forward * positions
    found = planned(vlm, recomputed=True) - planned(vlm) - scan - outputs
    assert found == pytest.approx(counted(vlm) - plain, rel=0.05)


def test_operations_of_the_released_model_are_six_for_each_trained_weight():
    """The rule of thumb of language models, arXiv 2001.08361."""
    from cobra.conf import ModelConfig
    from cobra.training.config import LoraConfig
    from cobra.training.planning.meta_model import build_meta_model

    vlm = build_meta_model(ModelConfig.get_choice_class("cobra+3b")(), "finetune", LoraConfig())
    model = count_flops(vlm)
    weights = sum(value.numel() for value in vlm.llm_backbone.llm.backbone.layers.parameters())
    assert model.matrices.total == pytest.approx(6 * weights, rel=0.01)
    # The scan is less than a fiftieth of it: it takes its time for another reason, the traffic of memory.
    assert 0.005 < model.scan.total / model.matrices.total < 0.02
    # A frozen tower has no backward pass.
    assert model.towers.backward == 0
    assert model.towers.forward == pytest.approx(2 * 731.9e6 * 729, rel=0.2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("Tesla T4", None),
        ("A machine of the future", None),
    ],
)
def test_peaks_are_found_by_the_names_of_devices(name, peak):
    assert peak_tflops(name) == peak
