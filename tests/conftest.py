"""Fixtures shared by all tests."""

import gc
import os
import sys

# Before torch is imported: the tensors are tiny, and threads that wait for each other cost four times the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Width of tables: no test depends on the terminal, nor on a program that another one has run in this process.
os.environ["COLUMNS"] = "120"

from pathlib import Path
from types import SimpleNamespace

import pytest
from golden_set import GoldenSet

GOLDEN_DIR = Path(os.environ.get("COBRA_GOLDEN_DIR") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden fixtures; COBRA_GOLDEN_DIR points the golden tests at another set of the same form."""
    return GOLDEN_DIR


@pytest.fixture(autouse=True)
def _hub_that_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget with each test that the hub did not answer it: `check_hub` remembers that for the process."""
    if constants := sys.modules.get("huggingface_hub.constants"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)


def pytest_configure() -> None:
    """Search for no garbage in what is imported and collected, which stays: a third of the time of a collection."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Take up the search for garbage, without what is there by now."""
    gc.freeze()
    gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `golden_projector` or `golden_prompts` once for each of the set's."""
    for fixture, name in (("golden_projector", "projectors.json"), ("golden_prompts", "prompts.json")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, GoldenSet(GOLDEN_DIR).json(name))


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
    towers = {}
    for name, tower in golden.towers.items():
        kwargs = {key: value for key, value in tower.items() if key != "timm"}
        if tower["timm"].endswith(".openai"):
            # As in the registered CLIP towers.
            kwargs["act_layer"] = "quick_gelu"
        towers[name] = TowerSpec(tower["timm"], golden.meta["image_size"], kwargs)
    register_vision_backbone(golden.meta["vision_backbone_id"], VisionSpec(towers, weights=weights))
    register_llm_backbone(golden.meta["llm_backbone_id"], LLMSpec(golden.path("hf_llm")))
    return golden


@pytest.fixture
def golden_vlm(golden_registered: GoldenSet):
    """The golden run directory, loaded with the set's vision weights; a new model for every test."""
    import cobra

    return cobra.load(golden_registered.path("run"), device="cpu")


@pytest.fixture(scope="session")
def golden_images(golden: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden pictures with the pixels that Cobra reads; ours differ where they are transparent or of 16 bits."""
    from PIL import Image

    folder, stored = tmp_path_factory.mktemp("images"), golden.path("images")
    for path in (path for path in stored.rglob("*") if path.is_file()):
        target = folder / path.relative_to(stored)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.convert("RGB").save(target, "PNG")
    return folder


@pytest.fixture
def golden_data(golden_registered: GoldenSet, golden_vlm, golden_images: Path):
    """The golden rows of both kinds as datasets, and their collator."""
    from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
    from cobra.util.data_utils import PaddedCollatorForLanguageModeling

    golden, vlm = golden_registered, golden_vlm
    transform, tokenizer = vlm.vision_backbone.image_transform, vlm.llm_backbone.tokenizer
    return SimpleNamespace(
        finetune=FinetuneDataset(
            golden.path("finetune.json"), golden_images, transform, tokenizer, vlm.llm_backbone.prompt_builder_fn
        ),
        align=AlignDataset(golden.path("align.json"), golden_images, transform, tokenizer),
        collator=PaddedCollatorForLanguageModeling(
            tokenizer.model_max_length, tokenizer.pad_token_id, vlm.vision_backbone.default_image_resolution
        ),
    )
