"""Model configurations, with Cobra's names and values; `--model.type` picks one, `--model.<field>` overrides."""

from dataclasses import dataclass
from enum import Enum, unique

from draccus import ChoiceRegistry


@dataclass
class ModelConfig(ChoiceRegistry):
    """Vision-language model, and the optimisation of each stage of training, by default the released recipe's."""

    model_id: str
    """Unique name; the value of `--model.type`."""
    arch_specifier: str
    """Projector: `linear`, or ending in `fused-gelu-mlp`, `gelu-mlp` or `fused-ldpnet`; a leading `no-align` means
    that no align stage is needed."""
    vision_backbone_id: str
    """Id of a registered vision backbone."""
    llm_backbone_id: str
    """Id of a registered language model."""
    image_resize_strategy: str
    """Way in which images become squares: `resize-naive`, `resize-crop` or `letterbox`."""
    llm_max_length: int = 2048
    """Longest text in tokens; longer rows are cut on the right. Image patches come on top."""
    align_epochs: int = 1
    """Passes over the data."""
    align_max_steps: int | None = None
    """Optimiser steps in place of epochs; null trains for the epochs."""
    align_global_batch_size: int = 256
    """Rows of one optimiser step, over all processes and forward passes."""
    align_per_device_batch_size: int = 16
    """Rows of one forward pass on one process."""
    align_learning_rate: float = 1e-3
    """Peak learning rate."""
    align_weight_decay: float = 0.0
    """Weight decay of AdamW, for matrices; norms, biases, A_log and D are not decayed."""
    align_max_grad_norm: float = 1.0
    """Global norm that gradients are clipped to."""
    align_lr_scheduler_type: str = "linear-warmup+cosine-decay"
    """Learning rate schedule: `linear-warmup+cosine-decay`."""
    align_warmup_ratio: float = 0.03
    """Share of the steps spent warming up."""
    align_train_strategy: str = "fsdp-shard-grad-op"
    """Sharding: `fsdp-shard-grad-op`, `fsdp-full-shard` or `ddp`."""

    finetune_epochs: int = 2
    """Passes over the data; all `finetune_` fields are for finetune and full-finetune."""
    finetune_max_steps: int | None = None
    """Optimiser steps in place of epochs; null trains for the epochs."""
    finetune_global_batch_size: int = 128
    """Rows of one optimiser step, over all processes and forward passes."""
    finetune_per_device_batch_size: int = 16
    """Rows of one forward pass on one process."""
    finetune_learning_rate: float = 2e-5
    """Peak learning rate."""
    finetune_weight_decay: float = 0.1
    """Weight decay of AdamW, for matrices; norms, biases, A_log and D are not decayed."""
    finetune_max_grad_norm: float = 1.0
    """Global norm that gradients are clipped to."""
    finetune_lr_scheduler_type: str = "linear-warmup+cosine-decay"
    """Learning rate schedule: `linear-warmup+cosine-decay`."""
    finetune_warmup_ratio: float = 0.03
    """Share of the steps spent warming up."""
    finetune_train_strategy: str = "fsdp-full-shard"
    """Sharding: `fsdp-shard-grad-op`, `fsdp-full-shard` or `ddp`."""

    enable_gradient_checkpointing: bool = True
    """Recompute each Mamba block in the backward pass instead of keeping its activations."""
    enable_mixed_precision_training: bool = True
    """Compute in bf16 with fp32 master weights (on CUDA; a CPU computes in fp32)."""
    reduce_in_full_precision: bool = False
    """Average gradients over processes in fp32 instead of bf16."""


@dataclass
class Cobra_3B(ModelConfig):
    """The released recipe: DINOv2 + SigLIP at 384 px, Mamba-2.8B-Zephyr, two epochs without an align stage."""

    model_id: str = "cobra+3b"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    vision_backbone_id: str = "dinosiglip-vit-so-384px"
    llm_backbone_id: str = "mamba-2.8b-zephyr"
    image_resize_strategy: str = "resize-naive"


@dataclass
class Cobra_One_Epoch_3B(Cobra_3B):
    """The released recipe with one epoch."""

    model_id: str = "cobra-one-epoch+3b"
    finetune_epochs: int = 1


@dataclass
class Cobra_Base_3B(Cobra_3B):
    """The released recipe on Mamba-2.8B-SlimPajama, which has not seen chats."""

    model_id: str = "cobra-base+3b"
    llm_backbone_id: str = "mamba-2.8b-slimpj"


@dataclass
class Cobra_SigLIP_3B(Cobra_3B):
    """SigLIP alone as the vision tower."""

    model_id: str = "cobra-siglip+3b"
    vision_backbone_id: str = "siglip-vit-so400m-384px"
    arch_specifier: str = "no-align+gelu-mlp"


@dataclass
class Cobra_LDPNet_3B(Cobra_3B):
    """The lightweight downsampling projector: 196 image tokens instead of 729."""

    model_id: str = "cobra-ldpnet+3b"
    arch_specifier: str = "no-align+fused-ldpnet"


@dataclass
class Cobra_Tiny(Cobra_3B):
    """A model of about one million parameters whose weights ship in the package: everything runs on a laptop CPU."""

    model_id: str = "cobra-tiny"
    vision_backbone_id: str = "dinosiglip-vit-tiny-48px"
    llm_backbone_id: str = "mamba-0.5m-zephyr"
    llm_max_length: int = 512
    align_global_batch_size: int = 32
    align_per_device_batch_size: int = 16
    finetune_global_batch_size: int = 32
    finetune_per_device_batch_size: int = 16
    finetune_learning_rate: float = 2e-3
    finetune_weight_decay: float = 0.01
    enable_gradient_checkpointing: bool = False
    enable_mixed_precision_training: bool = False


@unique
class ModelRegistry(Enum):
    """Registered models; members know their `model_id`."""

    COBRA_3B = Cobra_3B
    COBRA_ONE_EPOCH_3B = Cobra_One_Epoch_3B
    COBRA_BASE_3B = Cobra_Base_3B
    COBRA_SIGLIP_3B = Cobra_SigLIP_3B
    COBRA_LDPNET_3B = Cobra_LDPNet_3B
    COBRA_TINY = Cobra_Tiny

    @property
    def model_id(self) -> str:
        """Value of `--model.type`."""
        return str(self.value.model_id)


# Other names by which a model may be asked for; `cobra-3b` is the one that FINETUNING_SUMMARY.md uses.
MODEL_ALIASES = {"cobra-3b": "cobra+3b"}

for _member in ModelRegistry:
    ModelConfig.register_subclass(_member.model_id, _member.value)
for _alias, _model_id in MODEL_ALIASES.items():
    ModelConfig.register_subclass(_alias, ModelConfig.get_choice_class(_model_id))
