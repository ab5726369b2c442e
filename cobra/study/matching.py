"""Steps of each arm, so that all arms have equal rows, tokens or operations."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cobra.models.backbones.llm.backbone import prompt_builder_of
from cobra.models.vlms import CobraVLM
from cobra.preprocessing.datasets.answer_forms import Conversations
from cobra.preprocessing.datasets.arrow_rows import Rows, read_rows
from cobra.preprocessing.materialize import find_components
from cobra.study.config import StudyConfig
from cobra.training.config import stage_hyperparameters
from cobra.training.flops import count_flops, flops_per_step
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.planning.row_lengths import cached_tokenizer
from cobra.util.errors import UserError

MATCHES = ("rows", "tokens", "flops")

# Rows whose tokens are counted: their mean is known to 1 %.
_SAMPLE = 2000
_SEED = 7


class Cost(NamedTuple):
    """Mean cost of a row in one arm."""

    tokens: float
    """Tokens of text, the question's included."""
    labels: float
    """Tokens that the loss is taken on."""
    images: float
    """Share of rows with an image."""


def open_arms(config: StudyConfig) -> dict[str, Conversations]:
    """Open the rows in the form of every arm, which finds out whether they have it.

    Raises:
        UserError: The rows are missing or bad, or no answer has the stages that an arm is about.
    """
    rows = read_rows(find_components(config.stage, config.dataset)[0])
    return {arm: Conversations(rows, arm) for arm in config.arms}


def measure_costs(config: StudyConfig, arms: Mapping[str, Conversations]) -> dict[str, Cost]:
    """Count the tokens of the same rows in every arm.

    Raises:
        UserError: The model's tokenizer is not at hand.
    """
    tokenizer = cached_tokenizer(config.model)
    if tokenizer is None:
        raise UserError(
            f"--match {config.match} counts tokens, and the tokenizer of {config.model.model_id} is not here: fetch it "
            f"with cobra-vlm fetch {config.model.model_id}, or give --match rows"
        )
    rows = next(iter(arms.values())).rows
    chosen = np.random.default_rng(_SEED).permutation(len(rows))[:_SAMPLE].tolist()
    builder_of = prompt_builder_of(config.model.llm_backbone_id)
    costs = {}
    for arm, conversations in arms.items():
        tokens = labels = 0
        for index in chosen:
            builder = builder_of(model_family="cobra")
            for turn in conversations[index]:
                size = len(tokenizer(builder.add_turn(turn["from"], turn["value"]), verbose=False).input_ids)
                tokens += size
                labels += size * (turn["from"] == "gpt")
        costs[arm] = Cost(tokens / len(chosen), labels / len(chosen), float(rows.has_image[chosen].mean()))
    return costs


def steps_of(config: StudyConfig, arms: Mapping[str, Conversations]) -> dict[str, int | None]:
    """Return the steps of every arm; None leaves the number to the flags of training.

    The costliest arm takes the steps that the flags give, the others more, in proportion.
    """
    if config.match == "rows":
        return dict.fromkeys(arms)
    costs = measure_costs(config, arms)
    values = {arm: cost.tokens for arm, cost in costs.items()}
    if config.match == "flops":
        model = build_meta_model(config.model, config.stage, config.lora)
        values = {arm: _flops(model, cost) for arm, cost in costs.items()}
    steps, most = _whole_steps(config, next(iter(arms.values())).rows), max(values.values())
    return {arm: round(steps * most / value) for arm, value in values.items()}


def _flops(vlm: CobraVLM, cost: Cost) -> float:
    positions = cost.tokens + cost.images * vlm.image_tokens
    return flops_per_step(count_flops(vlm), cost.images, positions, cost.labels)


def _whole_steps(config: StudyConfig, rows: Rows) -> int:
    values = stage_hyperparameters(config.model, config.stage)
    if values.max_steps is not None:
        return values.max_steps
    return values.epochs * -(-len(rows) // values.global_batch_size)


def questions_of(config: StudyConfig) -> tuple[Path, Path | None, None]:
    """Return the file of questions and the folder of their images.

    Raises:
        UserError: None is named, and the data set has no held-out rows.
    """
    if config.questions is not None:
        return config.questions, config.questions_image_dir, None
    if config.dataset.holdout_components is None:
        raise UserError(
            f"the data set {config.dataset.dataset_id} has no held-out rows: name rows whose conclusions are scored "
            "with --questions"
        )
    file, folder = (Path(config.dataset.dataset_root_dir) / part for part in config.dataset.holdout_components)
    return file, config.questions_image_dir or folder, None
