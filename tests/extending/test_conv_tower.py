"""A tower from outside the package trains, is planned for, and is read back with the run."""

import pytest
import torch
from few_steps import losses, train, write_colours
from torch.utils.flop_counter import FlopCounterMode

import cobra
from cobra.models.checkpoint import read_checkpoint

FLAGS = ("--model.vision_backbone_id", "conv-48px", "--model.llm_backbone_id", "mamba-0.5m-zephyr")


@pytest.fixture(autouse=True)
def tower(extend):
    return extend("conv_tower")


def test_it_trains_and_is_read_back_with_the_run(tmp_path):
    flags = (*FLAGS, "--stage", "full-finetune", "--model.finetune_max_steps", "6")
    run = train(write_colours(tmp_path), *flags)
    assert losses(run)[-1] < losses(run)[0]
    saved = read_checkpoint(run / "checkpoints" / "latest-checkpoint.pt")["vision_backbone"]
    read = cobra.load(run, device="cpu").vision_backbone.state_dict()
    first = "featurizer.layers.0.weight"
    assert saved.keys() == read.keys() and torch.equal(saved[first], read[first])


def test_it_is_planned_for(tmp_path, capsys):
    train(write_colours(tmp_path), *FLAGS, "--stage", "full-finetune", "--dry_run", "true")
    assert "memory" in capsys.readouterr().out.lower()


def test_its_operations_are_those_that_torch_counts(tower):
    built = tower.ConvTower()
    with FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, 3, built.image_size, built.image_size))
    assert built.flops()[0] == counter.get_total_flops()
