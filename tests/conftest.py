"""Fixtures shared by all tests."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden fixtures; COBRA_GOLDEN_DIR points the golden tests at another set of the same form."""
    return Path(os.environ.get("COBRA_GOLDEN_DIR", Path(__file__).parent / "golden"))


class GoldenSet:
    """Reads the files of the golden set; a file that the set does not hold skips the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = self.json("meta.json")

    def path(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            pytest.skip(f"the golden set {self.folder} has no {name}")
        return path

    def json(self, name: str):
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def npz(self, name: str) -> dict:
        import torch

        with np.load(self.path(name)) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    def state_dict(self) -> dict:
        """The towers' weights."""
        return self.npz("vision_state_dict.npz")

    @property
    def towers(self) -> dict[str, dict]:
        """The towers' settings by name, in the order in which their features are joined."""
        found = {name: value for name, value in self.meta.items() if isinstance(value, dict) and "timm" in value}
        prefixes = [name.split(".")[0].removesuffix("_featurizer") for name in self.state_dict()]
        if "featurizer" in prefixes:
            return {"": next(iter(found.values()))}
        return {name: found[name] for name in dict.fromkeys(prefixes)}

    def pixels(self, arrays: dict):
        """The pixels that a fixture holds, by tower."""
        values = {name.removeprefix("pixel_"): value for name, value in arrays.items() if name.startswith("pixel_")}
        return values if "" not in self.towers else next(iter(values.values()))


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> GoldenSet:
    return GoldenSet(golden_dir)


@pytest.fixture(scope="session")
def golden_registered(golden: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    """The golden set, with its vision towers and language model registered under its own ids."""
    from safetensors.torch import save_file

    from cobra.models.backbones.llm import LLMSpec, register_llm_backbone
    from cobra.models.backbones.vision import TowerSpec, VisionSpec, register_vision_backbone

    weights = tmp_path_factory.mktemp("golden") / "vision.safetensors"
    save_file(golden.state_dict(), weights)
    towers = {
        name: TowerSpec(
            tower["timm"],
            golden.meta["image_size"],
            {key: value for key, value in tower.items() if key != "timm"},
        )
        for name, tower in golden.towers.items()
    }
    register_vision_backbone(golden.meta["vision_backbone_id"], VisionSpec(towers, weights=weights))
    register_llm_backbone(golden.meta["llm_backbone_id"], LLMSpec(golden.path("hf_llm")))
    return golden


@pytest.fixture
def golden_vlm(golden_registered: GoldenSet):
    """The golden run directory, loaded with the set's vision weights; a new model for every test."""
    import cobra

    return cobra.load(golden_registered.path("run"), device="cpu")


@pytest.fixture
def golden_data(golden_registered: GoldenSet, golden_vlm):
    """The golden rows of both kinds as datasets, and their collator."""
    from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
    from cobra.util.data_utils import PaddedCollatorForLanguageModeling

    golden, vlm = golden_registered, golden_vlm
    transform, tokenizer = vlm.vision_backbone.image_transform, vlm.llm_backbone.tokenizer
    images = golden.path("images")
    return SimpleNamespace(
        finetune=FinetuneDataset(
            golden.path("finetune.json"), images, transform, tokenizer, vlm.llm_backbone.prompt_builder_fn
        ),
        align=AlignDataset(golden.path("align.json"), images, transform, tokenizer),
        collator=PaddedCollatorForLanguageModeling(
            tokenizer.model_max_length, tokenizer.pad_token_id, vlm.vision_backbone.default_image_resolution
        ),
    )
