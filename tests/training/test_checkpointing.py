"""Saving a model: what is gathered for it, and what stays when it cannot be written."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lora_run import adapted_vlm
from processes import together
from scratch import scratch_vlm

from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.checkpoint import ADAPTER
from cobra.models.run_folder import LATEST
from cobra.models.vlms import CobraVLM
from cobra.training.checkpointing import NotSavedError, save_checkpoint
from cobra.training.lora import adapter_state
from cobra.training.sharding import shard
from cobra.util.distributed import World

CPU = World(0, 1, torch.device("cpu"))


@contextmanager
def files_up_to(size: int):
    """Let writing fail beyond a size of files, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_checkpoints_that_are_there_stay_when_one_cannot_be_written(tmp_path):
    vlm = scratch_vlm(1)
    vlm.freeze_backbones("finetune")
    save_checkpoint(vlm, tmp_path, CPU, 3, 1, 2.5, best=True)
    before = contents(tmp_path / "checkpoints")
    size = len(before["latest-checkpoint.pt"])
    assert len(before) == 3
    for limit in (0, size // 2, size - 1):
        with files_up_to(limit), pytest.raises(NotSavedError, match=r"step-000004\S+ .*File too large.*same command"):
            save_checkpoint(vlm, tmp_path, CPU, 4, 1, 2.0, best=True)
        assert contents(tmp_path / "checkpoints") == before
    path = save_checkpoint(vlm, tmp_path, CPU, 4, 1, 2.0)
    assert path.samefile(tmp_path / LATEST)


def refuse_to_be_gathered(*modules: torch.nn.Module) -> None:
    def refuse(module, *arguments):
        raise AssertionError("a module that is not saved is gathered")

    for module in modules:
        module.register_state_dict_pre_hook(refuse)


def test_frozen_modules_beside_adapters_are_not_gathered(tmp_path):
    vlm = adapted_vlm(TINY_FOLDER / "model.safetensors")
    refuse_to_be_gathered(vlm.vision_backbone, vlm.llm_backbone, vlm.llm_backbone.llm)
    path = save_checkpoint(vlm, tmp_path, CPU, 1, 1, 0.5)
    saved = torch.load(path, weights_only=True)["model"]
    for module, expected in {"projector": vlm.projector.state_dict(), ADAPTER: adapter_state(vlm)}.items():
        found = saved.pop(module)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not saved


def aligned() -> CobraVLM:
    """A model of which the projector alone is saved."""
    vlm = scratch_vlm()
    vlm.freeze_backbones("align")
    vlm.altered_module_keys.clear()
    refuse_to_be_gathered(vlm.vision_backbone, vlm.llm_backbone, vlm.llm_backbone.llm)
    return vlm


def save_as_one_of_two(world: World, folder: Path) -> None:
    vlm = aligned()
    shard(vlm, "fsdp-full-shard", world, None)
    save_checkpoint(vlm, folder / "whole", world, 1, 1, 0.5)
    if world.is_main:
        # A file where the folder should be.
        (folder / "checkpoints").touch()
    with pytest.raises(NotSavedError) as error:
        save_checkpoint(vlm, folder, world, 1, 1, 0.5)
    (folder / f"{world.rank}.txt").write_text(error.value.reason)


def test_two_processes_save_what_one_saves_and_both_learn_that_the_main_one_could_not(tmp_path):
    together(2, tmp_path, save_as_one_of_two, tmp_path)
    save_checkpoint(aligned(), tmp_path / "alone", CPU, 1, 1, 0.5)
    found, expected = (torch.load(tmp_path / name / LATEST, weights_only=True)["model"] for name in ("whole", "alone"))
    assert list(found) == list(expected) == ["projector"]
    assert found["projector"].keys() == expected["projector"].keys()
    assert all(torch.equal(found["projector"][name], tensor) for name, tensor in expected["projector"].items())
    reasons = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(reasons) == 1 and "File exists" in reasons.pop()
