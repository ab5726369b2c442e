"""A small study: rows and questions of rendered scenes, and flags for cobra-tiny on them."""

from dataclasses import replace
from pathlib import Path

import pytest

from cobra.conf import DatasetConfig, ModelConfig
from cobra.demo.datasets import write_question_rows
from cobra.study.config import StudyConfig


@pytest.fixture(scope="session")
def scene_rows(tmp_path_factory):
    """Rows with four-stage answers, three of each of seven kinds, and their images."""
    folder = tmp_path_factory.mktemp("scenes")
    write_question_rows(folder, 21, 3)
    return folder


@pytest.fixture
def config(scene_rows, tmp_path):
    model = ModelConfig.get_choice_class("cobra-tiny")(
        finetune_max_steps=2, finetune_global_batch_size=4, finetune_per_device_batch_size=4
    )
    dataset = DatasetConfig.get_choice_class("custom")(
        dataset_root_dir=scene_rows, finetune_stage_components=(Path("rows.json"), Path("images"))
    )
    return StudyConfig(
        model=model,
        dataset=dataset,
        pretrained_checkpoint="cobra-tiny",
        device="cpu",
        study_dir=tmp_path / "study",
        questions=scene_rows / "rows.json",
        questions_image_dir=scene_rows / "images",
        max_new_tokens=8,
        batch_size=21,
    )


@pytest.fixture
def change(config):
    """Return the flags with some changed; those of the data set and the model by their own names."""

    def change(**values):
        for part in ("dataset", "model"):
            names = vars(getattr(config, part))
            own = {name: values.pop(name) for name in [*values] if name in names}
            if own:
                values[part] = replace(getattr(config, part), **own)
        return replace(config, **values)

    return change
