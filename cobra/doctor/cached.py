"""Examination of the hub's cache: which files of a model are there."""

import os
from collections.abc import Iterator
from pathlib import Path

from cobra.doctor.finding import Finding
from cobra.models.backbones.llm.specs import LLM_BACKBONES
from cobra.models.backbones.vision.specs import VISION_BACKBONES, TowerSpec
from cobra.models.registry import HUB_REPOSITORY, MODELS, find_model
from cobra.util.errors import lookup
from cobra.util.program import COMMAND

_GIB = 1 << 30


def examine_cache(model: str) -> Iterator[Finding]:
    """Yield the findings about the files of a model.

    Args:
        model: Id or name of a registered model.

    Raises:
        UserError: There is no such model.
    """
    description = find_model(model) or lookup(MODELS, model, "the model")
    root = cache_root()
    absent = []
    for repository in repositories(description.model_id):
        folder = root / f"models--{repository.replace('/', '--')}"
        size = sum(path.stat().st_size for path in (folder / "blobs").glob("*") if path.is_file())
        if size:
            yield Finding("weights", "ok", f"{repository}: {size / _GIB:.1f} GiB in {root}")
        else:
            absent.append(repository)
    if absent:
        text = f"not in {root}: {', '.join(absent)}"
        yield Finding("weights", "note", text, f"{COMMAND} fetch {description.model_id}; a run fetches them, too")


def cache_root() -> Path:
    """Return the folder of the hub's cache, as huggingface_hub finds it."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def repositories(model_id: str) -> list[str]:
    """Return the repositories of the hub that a released model is made of; none for one that is packaged."""
    config = MODELS[model_id].config
    llm = LLM_BACKBONES[config.llm_backbone_id]
    sources = [source for source in (llm.source, llm.tokenizer) if isinstance(source, str)]
    vision = VISION_BACKBONES[config.vision_backbone_id]
    fetched = vision.towers.values() if vision.pretrained and vision.weights is None else ()
    towers = [f"timm/{tower.timm_id}" for tower in fetched if isinstance(tower, TowerSpec)]
    return [*([HUB_REPOSITORY] if sources else []), *sources, *towers]
