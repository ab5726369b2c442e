"""Study on rendered scenes: the demonstration's data and small model, with settings of half an hour on two cores."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from cobra.conf import DatasetConfig, ModelConfig
from cobra.demo.datasets import write_llava_cot, write_question_rows
from cobra.demo.questions import KINDS, MORE, RELATIONS
from cobra.demo.run import BASE
from cobra.preprocessing.llava_cot import PrepareConfig, prepare
from cobra.study.config import StudyConfig
from cobra.util.errors import UserError, check_values

SCENE_KINDS = (*(kind for kind in KINDS if kind != "describe"), MORE)
"""Kinds of questions: to read off one colour or shape needs no trace, to count or compare what was looked up may."""

_SEED = 7
_STEPS = 400
_LEAST_ROWS = 50
_DATA = "llava-cot-100k"
# Flags that mean the same for scenes and for other data, with the value here where the flag is left at its default.
_FITTING: dict[str, Any] = {"device": "cpu", "max_new_tokens": 160, "batch_size": 32}


def with_scenes(config: StudyConfig) -> StudyConfig:
    """Return the study of rendered scenes where `--scenes` asks for it, its data made; any other one as it is.

    Raises:
        UserError: A number is too small, a flag is given that scenes decide, or the rows could not be prepared.
    """
    if config.scenes is None:
        return config
    _refuse_decided(config)
    least = len(SCENE_KINDS)
    check_values(
        {
            "scenes": (config.scenes, config.scenes >= _LEAST_ROWS, f"at least {_LEAST_ROWS}"),
            "scene_questions": (config.scene_questions, config.scene_questions >= least, f"at least {least}"),
        }
    )
    data = config.study_dir / f"data-{config.scenes}-{config.scene_questions}"
    config.study_dir.mkdir(parents=True, exist_ok=True)
    # Jobs of an array begin together: one draws, the others wait.
    with FileLock(f"{data}.lock"):
        _draw(config, data)
    questions = data / "questions"
    # A number of steps that was given on the command line stays.
    steps = config.model.finetune_max_steps or _STEPS
    model = ModelConfig.get_choice_class(BASE)(
        finetune_max_steps=steps,
        finetune_learning_rate=2e-3,
        finetune_global_batch_size=32,
        finetune_per_device_batch_size=32,
    )
    return replace(
        config,
        dataset=DatasetConfig.get_choice_class(_DATA)(dataset_root_dir=data, holdout_components=None),
        model=model,
        pretrained_checkpoint=BASE,
        questions=questions / "rows.json",
        questions_image_dir=questions / "images",
        **{name: value for name, value in _FITTING.items() if getattr(config, name) == getattr(StudyConfig, name)},
    )


def _refuse_decided(config: StudyConfig) -> None:
    """Raise a UserError that names the flags whose values scenes decide; to name the same value is no fault."""
    defaults = StudyConfig()
    given = [f"--{name}" for name in ("questions", "questions_image_dir") if getattr(config, name) is not None]
    given += ["--pretrained_checkpoint"] * (config.pretrained_checkpoint not in (None, BASE))
    given += _given("model", config.model, (defaults.model, ModelConfig.get_choice_class(BASE)()))
    given += _given("dataset", config.dataset, (defaults.dataset, DatasetConfig.get_choice_class(_DATA)()))
    if given:
        raise UserError(
            f"--scenes brings its own data and model, and has no use for {', '.join(given)}: leave that out, or leave "
            "out --scenes and study data of your own"
        )


def _given(group: str, values: Any, plain: tuple[Any, Any]) -> list[str]:
    """Return the flags of a group that were given, but for the number of steps; `plain` are choices without any."""
    same = next((one for one in plain if type(one) is type(values)), None)
    if same is None:
        return [f"--{group}.type"]
    return [
        f"--{group}.{field.name}"
        for field in fields(values)
        if field.name != "finetune_max_steps" and getattr(values, field.name) != getattr(same, field.name)
    ]


def _draw(config: StudyConfig, data: Path) -> None:
    """Draw rows and questions and prepare the rows, where that has not been done."""
    cot = data / "download" / "llava-cot-100k"
    if (cot / "llava_cot_100k.json").is_file():
        return
    say = Console(highlight=False, soft_wrap=True).print
    say(f"drawing {config.scenes:,} rows and {config.scene_questions:,} questions in {data}")
    # Relations twice, as in the demonstration.
    write_llava_cot(cot, config.scenes or 0, _SEED, (*SCENE_KINDS, *RELATIONS))
    write_question_rows(data / "questions", config.scene_questions, _SEED, SCENE_KINDS)
    prepare(PrepareConfig(data, download=False, llm_backbone_id="mamba-0.5m-zephyr"))
