"""The registries: every model and dataset of Cobra under its own name, with its own values, and ours beside them."""

from dataclasses import fields
from pathlib import Path

import pytest

from cobra.conf import DatasetConfig, DatasetRegistry, ModelConfig, ModelRegistry
from cobra.models import available_model_names, available_models, get_model_description
from cobra.models.backbones.llm.specs import LLM_BACKBONES
from cobra.models.backbones.vision.specs import VISION_BACKBONES
from cobra.models.vlms.cobra import build_projector
from cobra.training.schedule import check_schedule
from cobra.training.sharding import check_strategy
from cobra.util.errors import UserError

# Cobra's recipe; the other models of Cobra differ from it as MODELS says.
COBRA_3B = {
    "model_id": "cobra+3b",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "vision_backbone_id": "dinosiglip-vit-so-384px",
    "llm_backbone_id": "mamba-2.8b-zephyr",
    "image_resize_strategy": "resize-naive",
    "llm_max_length": 2048,
    "align_epochs": 1,
    "align_max_steps": None,
    "align_global_batch_size": 256,
    "align_per_device_batch_size": 16,
    "align_learning_rate": 1e-3,
    "align_weight_decay": 0.0,
    "align_max_grad_norm": 1.0,
    "align_lr_scheduler_type": "linear-warmup+cosine-decay",
    "align_warmup_ratio": 0.03,
    "align_train_strategy": "fsdp-shard-grad-op",
    "finetune_epochs": 2,
    "finetune_max_steps": None,
    "finetune_global_batch_size": 128,
    "finetune_per_device_batch_size": 16,
    "finetune_learning_rate": 2e-5,
    "finetune_weight_decay": 0.1,
    "finetune_max_grad_norm": 1.0,
    "finetune_lr_scheduler_type": "linear-warmup+cosine-decay",
    "finetune_warmup_ratio": 0.03,
    "finetune_train_strategy": "fsdp-full-shard",
    "enable_gradient_checkpointing": True,
    "enable_mixed_precision_training": True,
    "reduce_in_full_precision": False,
}
MODELS = {
    "cobra+3b": {},
    "cobra-one-epoch+3b": {"finetune_epochs": 1},
    "cobra-base+3b": {"llm_backbone_id": "mamba-2.8b-slimpj"},
    "cobra-siglip+3b": {"vision_backbone_id": "siglip-vit-so400m-384px", "arch_specifier": "no-align+gelu-mlp"},
    "cobra-ldpnet+3b": {"arch_specifier": "no-align+fused-ldpnet"},
}

INSTRUCT = "download/llava-v1.5-instruct"
ALIGN = ("download/llava-laion-cc-sbu-558k/chat.json", "download/llava-laion-cc-sbu-558k")
DATASETS = {
    "llava-v15": (f"{INSTRUCT}/llava_v1_5_mix665k.json", INSTRUCT),
    "llava-multimodal": (f"{INSTRUCT}/llava_v1_5_stripped625k.json", INSTRUCT),
    "llava-lvis4v": (f"{INSTRUCT}/llava_v1_5_lvis4v_mix888k.json", INSTRUCT),
    "llava-lrv": (f"{INSTRUCT}/llava_v1_5_lrv_mix1008k.json", INSTRUCT),
    "llava-lvis4v-lrv": (f"{INSTRUCT}/llava_v1_5_lvis4v_lrv_mix1231k.json", INSTRUCT),
    "llava-cot-100k": ("download/llava-cot-100k/llava_cot_100k.json", "download/llava-cot-100k"),
}

LLMS = {
    "mamba-2.8b-slimpj": "state-spaces/mamba-2.8b-slimpj",
    "mamba-2.8b": "state-spaces/mamba-2.8b",
    "mamba-1.4b": "state-spaces/mamba-1.4b",
    "mamba-2.8b-zephyr": "xiuyul/mamba-2.8b-zephyr",
}

DINO = "vit_large_patch14_reg4_dinov2.lvd142m"
TOWERS = {
    "clip-vit-b": {"": ("vit_base_patch16_clip_224.openai", 224)},
    "clip-vit-l": {"": ("vit_large_patch14_clip_224.openai", 224)},
    "clip-vit-l-336px": {"": ("vit_large_patch14_clip_336.openai", 336)},
    "siglip-vit-so400m": {"": ("vit_so400m_patch14_siglip_224.webli", 224)},
    "siglip-vit-so400m-384px": {"": ("vit_so400m_patch14_siglip_384.webli", 384)},
    "siglip-vit-b16-224px": {"": ("vit_base_patch16_siglip_224.webli", 224)},
    "siglip-vit-b16-256px": {"": ("vit_base_patch16_siglip_256.webli", 256)},
    "siglip-vit-b16-384px": {"": ("vit_base_patch16_siglip_384.webli", 384)},
    "dinov2-vit-l": {"": (DINO, 224)},
    "in1k-vit-l": {"": ("vit_large_patch16_224.augreg_in21k_ft_in1k", 224)},
    "dinosiglip-vit-so-384px": {"dino": (DINO, 384), "siglip": ("vit_so400m_patch14_siglip_384.webli", 384)},
    "dinoclip-vit-l-336px": {"dino": (DINO, 336), "clip": ("vit_large_patch14_clip_336.openai", 336)},
}


def values(config) -> dict:
    return {field.name: getattr(config, field.name) for field in fields(config)}


@pytest.mark.parametrize("model_id", MODELS)
def test_cobras_models_have_cobras_values(model_id):
    assert values(ModelConfig.get_choice_class(model_id)()) == COBRA_3B | {"model_id": model_id} | MODELS[model_id]


def test_fields_keep_cobras_order():
    """Positional construction is part of the interface."""
    assert [field.name for field in fields(ModelConfig)] == list(COBRA_3B)
    assert [field.name for field in fields(DatasetConfig)] == [
        "dataset_id",
        "align_stage_components",
        "finetune_stage_components",
        "dataset_root_dir",
        # Ours, after Cobra's.
        "holdout_components",
        "on_bad_image",
        "truncation",
        "answer",
    ]


def test_no_model_beyond_cobras_and_the_tiny_one():
    assert available_models() == [*MODELS, "cobra-tiny"]
    assert [member.model_id for member in ModelRegistry] == [*MODELS, "cobra-tiny"]


def test_other_names_of_the_released_model():
    assert ModelConfig.get_choice_class("cobra-3b") is ModelConfig.get_choice_class("cobra+3b")
    assert dict(available_model_names())["cobra+3b"] == ["cobra-3b", "Cobra-DINOSigLIP 3B"]
    for name in ("cobra+3b", "cobra-3b", "Cobra-DINOSigLIP 3B"):
        description = get_model_description(name)
        assert description["model_id"] == "cobra+3b"
        assert description["llm_backbone"] == "mamba-2.8b-zephyr"
        assert description["vision_backbone"] == "dinosiglip-vit-so-384px"
    with pytest.raises(UserError, match=r"'cobra-9b' is unknown.*cobra\+3b.*cobra-tiny"):
        get_model_description("cobra-9b")


@pytest.mark.parametrize("member", ModelRegistry)
def test_every_model_is_made_of_registered_parts(member):
    config = member.value()
    assert config.vision_backbone_id in VISION_BACKBONES
    assert config.llm_backbone_id in LLM_BACKBONES
    build_projector(config.arch_specifier, 4, 4)
    for stage in ("align", "finetune"):
        check_strategy(getattr(config, f"{stage}_train_strategy"))
        check_schedule(getattr(config, f"{stage}_lr_scheduler_type"))


@pytest.mark.parametrize("dataset_id", DATASETS)
def test_datasets_have_cobras_components(dataset_id):
    config = DatasetConfig.get_choice_class(dataset_id)()
    assert config.dataset_id == dataset_id
    assert config.finetune_stage_components == tuple(map(Path, DATASETS[dataset_id]))
    assert config.align_stage_components == tuple(map(Path, ALIGN))
    assert config.dataset_root_dir == Path("data")


def test_no_dataset_beyond_cobras_and_ours():
    assert list(DatasetConfig.get_known_choices()) == [*DATASETS, "custom"]
    assert [member.dataset_id for member in DatasetRegistry] == [*DATASETS, "custom"]


def test_language_models_of_cobra():
    assert {name: LLM_BACKBONES[name].source for name in LLMS} == LLMS


@pytest.mark.parametrize("backbone_id", TOWERS)
def test_vision_towers_of_cobra(backbone_id):
    towers = VISION_BACKBONES[backbone_id].towers
    found = {name: (tower.timm_id, tower.image_size) for name, tower in towers.items()}
    assert found == TOWERS[backbone_id]
    # The order in which features are joined.
    assert list(found) == list(TOWERS[backbone_id])
    for timm_id, tower in ((tower.timm_id, tower) for tower in towers.values()):
        assert tower.kwargs == ({"act_layer": "quick_gelu"} if timm_id.endswith(".openai") else {})
