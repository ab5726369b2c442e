"""Checks of a study, made before anything is trained: its flags, its checkpoint, and the settings of its folder."""

import json
from collections.abc import Mapping
from pathlib import Path

import draccus

from cobra.models.run_folder import find_checkpoint
from cobra.preprocessing.datasets.answer_forms import check_answer_form
from cobra.study.cells import cells_of, training_config
from cobra.study.config import StudyConfig
from cobra.study.matching import MATCHES
from cobra.study.origin import EXAM, ROWS, SHOWN, START_WEIGHTS, check_origin
from cobra.training.check_run import check_run
from cobra.training.config import PretrainConfig
from cobra.training.run_directory import FINISHED
from cobra.util.errors import UserError, check_known, check_values
from cobra.util.files import read_json, write_json
from cobra.util.tokens import read_hf_token

SETTINGS = "settings.json"

# Flags of training that every cell has its own of.
_OWN = ("seed", "run_id", "run_root_dir")
# Flags that only say how the work is spread.
_FREE = frozenset(
    ("nproc", "jobs", "cell", "device", "num_workers", "page", "plan", "hf_token", "batch_size", "lmms_eval_logs")
    + ("study_dir",)
)
# What other hashes mean, in words.
_FILES = {START_WEIGHTS: "weights of --pretrained_checkpoint", ROWS: "training rows", EXAM: "questions or captions"}


def check_flags(config: StudyConfig) -> Path:
    """Check flags by themselves and together; return the weights that all arms start from.

    Raises:
        UserError: Flags make no sense, or the checkpoint is missing or of another model than `--model.type`.
    """
    for arm in config.arms:
        check_answer_form(arm)
    check_known(config.match, MATCHES, "--match")
    for name, values in (("arms", config.arms), ("seeds", config.seeds)):
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise UserError(f"--{name} has {', '.join(twice)} more than once: each counts as one of its own")
    cells = len(config.arms) * len(config.seeds)
    check_values(
        {
            name: (getattr(config, name), getattr(config, name) >= 1, "at least 1")
            for name in ("nproc", "jobs", "batch_size")
        }
        | {"arms": (config.arms, len(config.arms) >= 2, "two or more")}
        | {"seeds": (config.seeds, len(config.seeds) >= 1, "one or more")}
        | {"max_new_tokens": (config.max_new_tokens, config.max_new_tokens >= 1, "at least 1")}
        | {"cell": (config.cell, config.cell is None or 0 <= config.cell < cells, f"from 0 to {cells - 1}")}
    )
    defaults, given = PretrainConfig(), []
    given += ["--dataset.answer"] * (config.dataset.answer != "full")
    given += [f"--{name}" for name in _OWN if getattr(config, name) != getattr(defaults, name)]
    if given:
        raise UserError(
            f"{', '.join(given)}: a study sets this for each of its arms; give --arms, --seeds, --study_dir"
        )
    if config.dry_run:
        raise UserError("--dry_run plans one training, and a study has many: give it to scripts/pretrain.py")
    if config.pretrained_checkpoint is None:
        raise UserError("--pretrained_checkpoint is missing: all arms start from one checkpoint, such as cobra+3b")
    check_run(training_config(config, cells_of(config)[0], None), config.nproc)
    return _find_start(config)


def _find_start(config: StudyConfig) -> Path:
    source = find_checkpoint(str(config.pretrained_checkpoint), read_hf_token(config.hf_token))
    for name in ("llm_backbone_id", "vision_backbone_id", "arch_specifier"):
        if source.fields[name] != getattr(config.model, name):
            raise UserError(
                f"the checkpoint {config.pretrained_checkpoint} has {name} {source.fields[name]}, and --model.type "
                f"{config.model.model_id} has {getattr(config.model, name)}: give the --model.type that it is of"
            )
    return source.path


def check_settings(config: StudyConfig, files: Mapping[str, str], steps: Mapping[str, int | None]) -> None:
    """Compare the study with what its folder was begun with, and keep its settings where the folder is new.

    Args:
        config: The flags.
        files: Hashes of the study's files; see :mod:`cobra.study.origin`.
        steps: Steps of each arm.

    Raises:
        UserError: Settings or files are others than those of the folder, or of a finished run in it.
    """
    values = {name: value for name, value in draccus.encode(config).items() if name not in _FREE}
    values = json.loads(json.dumps(values | dict(files) | {"steps": dict(steps)}, default=str))
    file = config.study_dir / SETTINGS
    before = read_json(file, "the settings of the study") if file.is_file() else values
    # More seeds and arms may join: what is there stays right.
    kept = [name for name in values if name not in ("arms", "seeds", "steps", *files)]
    changed = [name for name in kept if before.get(name) != values[name]]
    changed += [f"steps of {arm}" for arm, count in values["steps"].items() if before["steps"].get(arm, count) != count]
    # A folder may be older than some of the hashes: its runs tell theirs.
    changed += [
        f"{_FILES[name]}: sha256 {digest[:SHOWN]}, then {before[name][:SHOWN]}"
        for name, digest in files.items()
        if before.get(name, digest) != digest
    ]
    if changed:
        raise UserError(
            f"{config.study_dir} holds a study with other settings ({'; '.join(changed)}): its models and scores "
            "cannot be compared with new ones. Give these settings and files again, or another --study_dir, or delete "
            "that folder to begin anew"
        )
    for cell in cells_of(config):
        run_dir = training_config(config, cell, None).run_root_dir / cell.name
        if (run_dir / FINISHED).is_file():
            check_origin(run_dir, files)
    config.study_dir.mkdir(parents=True, exist_ok=True)
    write_json(file, values | {"steps": before["steps"] | values["steps"]})
