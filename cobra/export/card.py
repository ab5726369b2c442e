"""The model card of an export, as Markdown."""

from typing import Any

from cobra.export.formats import Format
from cobra.models.checkpoint import Checkpoint

_CARD = """\
---
library_name: cobra-vlm
pipeline_tag: image-text-to-text
license: other
tags:
- mamba
- vision-language
---

# {title}

A vision-language model of the Cobra family: vision towers, a projector, and the Mamba language model.
The weights are in `{weights}`; parts that are not in it are those of the named backbones.

## Use

{use}

## What it was made of

| | |
|---|---|
{rows}

`provenance.json`, where there is one, has the versions of all packages.

## Licences

These weights are made from other people's work, whose terms hold for them too:

- the language model and the vision towers named above, and the weights that training started from: see their pages;
- the training data{data}
"""

_LLAVA_COT = """\
, LLaVA-CoT-100k: Apache 2.0 by its card, a research preview for non-commercial use by its repository, answers
  written by GPT-4o (OpenAI's terms), images under the licences of their ten collections."""


def model_card(
    config: dict[str, Any], checkpoint: Checkpoint, record: dict[str, Any] | None, chosen: Format, repo_id: str | None
) -> str:
    """Return a model card as Markdown.

    Args:
        config: The exported `config.json`.
        checkpoint: The exported weights.
        record: The exported provenance; None for a model as released.
        chosen: Its format.
        repo_id: Repository of the hub that the folder is uploaded to, if any.
    """
    folder = repo_id.partition("/")[2] if repo_id else "path/to/this/folder"
    download = f"\nfetched by `hf download {repo_id} --local-dir {folder}`.\n" if repo_id else ""
    facts = _facts(config, checkpoint, record)
    dataset_id = str((config.get("dataset") or {}).get("dataset_id"))
    return _CARD.format(
        title=_cell(config.get("run_id") or config["model"]["model_id"]),
        weights=chosen.weights.as_posix(),
        use=chosen.use.replace("{download}", download).replace("{folder}", folder),
        data=_LLAVA_COT if dataset_id.startswith("llava-cot") else ": see its pages.",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
    )


def _facts(config: dict[str, Any], checkpoint: Checkpoint, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the values of the table by its first column."""
    model = config["model"]
    facts = {
        "Model": model["model_id"],
        "Language model": model["llm_backbone_id"],
        "Vision towers": model["vision_backbone_id"],
        "Projector": model["arch_specifier"],
    }
    for module, tensors in checkpoint.items():
        # A tied weight has two names.
        unique = {value.data_ptr(): value.numel() for value in tensors.values()}
        facts[f"Parameters of the {module}"] = f"{sum(unique.values()):,}"
    if "merged_lora" in config:
        lora = config["merged_lora"]
        sizes = f"rank {lora['rank']}, alpha {lora['alpha']}, on {', '.join(lora.get('target_modules', []))}"
        facts["Training of the language model"] = f"low-rank adapters, merged: {sizes}"
    if "stage" in config:
        facts["Stage"] = config["stage"]
    if record is None:
        return facts
    data, start, code = record["data"], record["weights"], record["code"]
    facts["Data"] = f"{(config.get('dataset') or {}).get('dataset_id', data.get('path'))}, {data.get('rows')} rows"
    facts["SHA-256 of the rows"] = data.get("sha256")
    facts["Started from"] = start.get("path") or "the bare backbones"
    if start.get("sha256"):
        facts["SHA-256 of the start"] = start["sha256"]
    facts["Code"] = f"cobra-vlm {code.get('cobra-vlm')}, commit {code.get('commit')}"
    facts["SHA-256 of the exported checkpoint"] = record["exported_from"]["sha256"]
    return facts


def _cell(value: object) -> str:
    """Return text for a cell of a table, or for a heading."""
    return " ".join(str(value).split()).replace("|", "\\|")
