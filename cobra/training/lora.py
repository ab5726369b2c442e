"""Low-rank adapters on the language model (arXiv 2106.09685), through peft: training that fits a card of 24 GB."""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.mamba.mixer import all_lora_targets, mixer_class
from cobra.models.quantized import check_quantize, count_parameters, quantization_of, quantize
from cobra.models.vlms import CobraVLM
from cobra.training.config import LoraConfig
from cobra.util.errors import UserError, check_values, missing_extra
from cobra.util.numbers import share

# peft's name of the only adapter; it stands in parameter names and not in saved ones.
_ADAPTER_NAME = "default"


def check_lora(config: LoraConfig, stage: str) -> None:
    """Check what can be checked before a model is built.

    Raises:
        UserError: A value makes no sense, the stage does not train the language model, or peft is not installed.
    """
    if config.rank == 0:
        if config.quantize is not None:
            raise UserError(
                f"--lora.quantize {config.quantize} keeps frozen weights, and without adapters the language model is "
                "trained in full, which needs full weights: give --lora.rank 16, or leave --lora.quantize out"
            )
        return
    checks = {
        "rank": (config.rank, config.rank >= 1, "at least 1, or 0 for no adapters"),
        "alpha": (config.alpha, config.alpha > 0, "above 0"),
        "dropout": (config.dropout, 0 <= config.dropout < 1, "at least 0 and below 1"),
    }
    check_values(checks, "lora.")
    _check_targets(config, all_lora_targets())
    if stage == "align":
        raise UserError(
            "--lora.rank is for stages that train the language model, and align trains the projector only: use --stage "
            "finetune, or --lora.rank 0"
        )
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "lora", "LoRA (--lora.rank)")
    check_quantize(config.quantize, "--lora.quantize")


def _check_targets(config: LoraConfig, known: Sequence[str]) -> None:
    unknown = [name for name in config.target_modules if name not in known]
    if unknown or not config.target_modules:
        raise UserError(
            f"--lora.target_modules {', '.join(unknown) or '(none)'}: adapters can be put on {', '.join(known)}"
        )


def check_base(vlm: CobraVLM, loaded_modules: list[str]) -> None:
    """Check that the weights under the adapters, which a checkpoint will not hold, were loaded or can be had again.

    Raises:
        UserError: The language model is at random values.
    """
    identifier = vlm.llm_backbone.identifier
    if "llm_backbone" not in loaded_modules and not llm_spec(identifier).pretrained:
        raise UserError(
            f"the language model {identifier} starts from random values, which no file holds, and a run with adapters "
            "saves only the adapters: give --pretrained_checkpoint a checkpoint with a language model, or train it in "
            "full with --lora.rank 0"
        )


def apply_lora(vlm: CobraVLM, config: LoraConfig) -> None:
    """Freeze the language model and put trainable adapters in fp32 on its mixers, in place.

    With `quantize` the mixers' large matrices are quantised first, on the CPU, so that all devices train over the same
    numbers.

    Called after `freeze_backbones`, with the weights of the start loaded, and before the model is cast, sharded, or an
    optimiser built. Adapters start as zero, so the model's answers do not change; every process draws the same values.
    The language model is then no more among `checkpoint_modules`: :func:`adapter_state` is what is saved of it.

    The configuration has a rank above 0 and has passed :func:`check_lora`.

    Raises:
        UserError: The mixer has no layer of a target's name, or peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "lora", "LoRA (--lora.rank)") from error
    from cobra.training.lora_layer import AdaptedLinear

    llm = vlm.llm_backbone.llm
    # Never the embedding or the head: they are tied, and an adapter on one would part them.
    _check_targets(config, mixer_class(llm.config).lora_targets)
    llm.requires_grad_(False)
    if config.quantize is not None:
        quantize(llm, config.quantize)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
    )
    settings._register_custom_module({torch.nn.Linear: AdaptedLinear})
    # As the projector's: outside the run's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.rank)
        peft.inject_adapter_in_model(settings, llm, _ADAPTER_NAME)
    for name, parameter in llm.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
    vlm.trainable_module_keys.remove("llm_backbone")
    vlm.altered_module_keys.discard("llm_backbone")


def is_adapter(name: str) -> bool:
    """Return True if a parameter of that name belongs to an adapter."""
    return ".lora_" in name


def describe_modules(vlm: CobraVLM) -> str:
    """Return the modules with their parameters in millions and what is trained of them, adapters by themselves."""
    counts: dict[tuple[str, str], int] = {}
    for key, module in vlm.named_children():
        for name, parameter in module.named_parameters():
            adapter = is_adapter(name)
            part = f"LoRA adapters on {key}" if adapter else key
            fate = "trained" if adapter or key in vlm.trainable_module_keys else "frozen"
            counts[part, fate] = counts.get((part, fate), 0) + parameter.numel()
        if hidden := count_parameters(module) - sum(value.numel() for value in module.parameters()):
            counts[f"{key} in {quantization_of(module)}", "frozen"] = hidden
    trained, total = sum(count for (_, fate), count in counts.items() if fate == "trained"), sum(counts.values())
    parts = ", ".join(f"{part} {count / 1e6:,.2f} M ({fate})" for (part, fate), count in counts.items())
    return f"{parts}; {share(trained, total)} of {total / 1e6:,.2f} M parameters are trained"


def adapter_state(vlm: CobraVLM) -> dict[str, Tensor]:
    """Return the adapters' weights on the CPU; every process has to call it where the model is sharded.

    Returns:
        By name: that of the adapted layer within `llm_backbone`, then `lora_A.weight` (rank, in) or `lora_B.weight`
        (out, rank). Empty where the model has no adapters.
    """
    state = {}
    for name, parameter in vlm.llm_backbone.named_parameters():
        if is_adapter(name):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            state[name.replace(f".{_ADAPTER_NAME}.", ".")] = whole.detach().cpu()
    return state
