"""Settings that a run must keep when it resumes: all that change its numbers, compared with a saved state."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from torch import Tensor, nn

from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.training.config import PretrainConfig, stage_prefix
from cobra.training.run_state import read_state
from cobra.util.data_utils import SKIPPED_ROW
from cobra.util.errors import UserError
from cobra.util.files import sha256_file
from cobra.util.parallel import available_cores
from cobra.util.printable import printable

# The flags that may change; every other one must not, new ones included.
MAY_CHANGE = frozenset(
    {
        # Where things lie and what they are called: what they hold is compared.
        *("pretrained_checkpoint", "run_id", "run_root_dir", "hf_token", "dataset.dataset_id"),
        *("dataset.dataset_root_dir", "dataset.align_stage_components", "dataset.finetune_stage_components"),
        "dataset.holdout_components",
        # How the same work is spread over a machine: the numbers differ in their rounding.
        *("device", "num_workers", "sharding_group_size", "offload_optimizer", "model.enable_gradient_checkpointing"),
        *("model.align_per_device_batch_size", "model.finetune_per_device_batch_size"),
        *("model.align_train_strategy", "model.finetune_train_strategy"),
        # What is saved, looked at and told, and when a run gives up.
        *("trackers", "wandb_project", "wandb_entity", "resume", "save_interval_steps", "save_interval_minutes"),
        *(
            "keep_checkpoints",
            "keep_epochs",
            "time_limit",
            "stop_grace_seconds",
            "max_skipped",
            "dry_run",
            "plan",
            "page",
        ),
        *("eval_interval_steps", "eval_samples"),
        # A run that raises has met no bad image: letting it skip the first one is the way on.
        "dataset.on_bad_image",
    }
)
# Names of states that were saved before the others were compared.
_FORMER_NAMES = {"model.model_id": "model"}
# What is kept as a hash, in words.
_HASHED = {
    "start": "weights to start from (--pretrained_checkpoint, or the backbones)",
    "data": "rows",
    "held_out": "held-out rows",
}
# Images whose files are compared, spread over the rows: all of them are a hundred thousand.
_IMAGES = 32
# Characters of a value, which a stranger's state may hold, in a message.
_SHOWN = 300


def setting_of(
    config: PretrainConfig, vlm: nn.Module, dataset: AlignDataset | FinetuneDataset, held_out: FinetuneDataset | None
) -> dict[str, Any]:
    """Return what must not change when a run goes on, as JSON values; the model is as it starts, without adapters."""
    setting = flags_that_stay(config) | {
        "rows": len(dataset),
        "data": dataset.examples.sha256,
        "held_out": None if held_out is None else held_out.examples.sha256,
        "start": weights_hash(vlm),
        "images": _image_hashes(dataset),
    }
    return dict(json.loads(json.dumps(setting)))


def flags_that_stay(config: PretrainConfig) -> dict[str, Any]:
    """Return the flags that must not change, by name; those of the stage without its prefix, and none of the other."""
    prefix = stage_prefix(config.stage)
    other = {"align": "finetune", "finetune": "align"}[prefix]
    values = {
        _FORMER_NAMES.get(flag, flag.removeprefix(f"model.{prefix}_")): value
        for flag, value in _leaves(config).items()
        if flag not in MAY_CHANGE and not flag.startswith((f"model.{other}_", "lora."))
    }
    lora = draccus.encode(config.lora) if config.lora.rank else None
    if lora is not None and lora["quantize"] is None:
        # As states have it that are older than the field.
        del lora["quantize"]
    return values | {"lora": lora}


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of all fields by the name of their flag; a group that may change is one of them."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value, flag = getattr(config, field.name), prefix + field.name
        if is_dataclass(value) and flag not in MAY_CHANGE:
            values |= _leaves(value, f"{flag}.")
        else:
            values[flag] = draccus.encode(value)
    return values


@torch.no_grad()
def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 of all weights of a module on the CPU, by name, whatever file they are from."""
    tensors = sorted(module.state_dict().items())
    # Hashing lets go of the interpreter: 11 GB take a second or two on a few cores.
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        hashes = list(pool.map(_tensor_hash, (tensor for _, tensor in tensors)))
    total = hashlib.sha256()
    for (name, tensor), digest in zip(tensors, hashes, strict=True):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + digest)
    return total.hexdigest()


def _tensor_hash(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data).digest()


def _image_hashes(dataset: AlignDataset | FinetuneDataset) -> dict[str, str]:
    """Return the SHA-256 of some images' files by their path, without those that cannot be read: they may be mended."""
    places = np.flatnonzero(dataset.examples.has_image)
    chosen = places[np.unique(np.linspace(0, len(places) - 1, _IMAGES).astype(int))] if len(places) else places
    hashes = {}
    for place in chosen.tolist():
        with suppress(UserError):
            if SKIPPED_ROW not in dataset[place]:
                name = dataset.examples[place]["image"]
                file = dataset.images.open(name)
                hashes[name] = (
                    sha256_file(file) if isinstance(file, Path) else hashlib.sha256(file.getvalue()).hexdigest()
                )
    return hashes


def check_setting(run_dir: Path, state: Path, setting: dict[str, Any]) -> list[str]:
    """Compare a saved state's setting with that of a start.

    Returns:
        What cannot be compared, because the state, of an older version, does not tell.

    Raises:
        UserError: The state was made with another setting, or cannot be read.
    """
    before = read_state(state).setting
    differences = [_difference(name, before[name], value) for name, value in setting.items() if name in before]
    differing = [difference for difference in differences if difference is not None]
    if differing:
        raise UserError(
            f"the run {run_dir} cannot go on with another setting; it was begun with {', '.join(differing)}. "
            "Give the former values, or --resume none and another --run_id."
        )
    return [name for name in setting if name not in before]


def _difference(name: str, before: Any, now: Any) -> str | None:
    """Return how a value of a saved state differs, None where it does not."""
    if name == "images" and isinstance(before, dict):
        changed = [image for image in now if before.get(image, now[image]) != now[image]]
        return f"another image {changed[0]} ({len(changed)} of {len(now)} compared differ)" if changed else None
    if before == now:
        return None
    if name in _HASHED:
        return f"other {_HASHED[name]} (SHA-256 {str(before)[:12]}, now {str(now)[:12]})"
    return f"{name} {printable(repr(before), _SHOWN)} (now {now!r})"
