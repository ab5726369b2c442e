"""Export a model as one folder of weights, configuration, record and model card, and upload it to the hub."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cobra.models.checkpoint import ADAPTER, Checkpoint, read_whole_model
from cobra.models.export_config import FORMATS, ExportConfig
from cobra.models.integrity import check_finite, checksums
from cobra.models.run_folder import LATEST, PROVENANCE, SAFETENSORS, CheckpointSource, find_checkpoint, read_config
from cobra.models.tensors import EMBEDDING, TIED_HEAD, read_tensors, surface_os_errors
from cobra.util.errors import UserError, check_known
from cobra.util.files import atomic_path, read_json, sha256_file, write_json, write_text
from cobra.util.network import check_network_variables
from cobra.util.program import command_line
from cobra.util.redaction import reason
from cobra.util.tokens import read_hf_token

# Exported entries of a run's configuration; the rest names folders and accounts of the machine that trained.
_PUBLIC = ("run_id", "stage", "seed")


def export(config: ExportConfig) -> Path:
    """Export a model and return the folder, which appears under its name when it is whole.

    Raises:
        UserError: A flag makes no sense, the model cannot be found or read, the folder exists or cannot be written, or
            the hub refuses the upload.
    """
    _check_config(config)
    say = Console(soft_wrap=True, highlight=False).print
    token = read_hf_token(config.hf_token)
    source = find_checkpoint(config.checkpoint, token)
    checkpoint = read_whole_model(source.path)
    for module, tensors in checkpoint.items():
        check_finite(tensors, f"the {module} in {source.path}")
    say(f"read {source.path}: {', '.join(checkpoint)}", markup=False)
    output = config.output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent) as name:
            folder = Path(name) / output.name
            _write_folder(folder, source, checkpoint, config)
            folder.rename(output)
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = "the disk is full" if full else reason(error)
        message = f"{output} cannot be written ({problem}); nothing is left of it. Choose another --output"
        raise UserError(message) from error
    size = sum(path.stat().st_size for path in output.rglob("*"))
    say(f"wrote {config.output}: {size / 1e6:,.1f} MB", markup=False)
    if config.push_to is not None:
        say(f"uploaded: {push(output, config.push_to, config.private, token)}", markup=False)
    return config.output


def _check_config(config: ExportConfig) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    check_known(config.format, FORMATS, "--format")
    if config.output.exists():
        raise UserError(f"--output {config.output} exists already: choose another folder, or move that one away")
    if config.push_to is None:
        return
    try:
        validate_repo_id(config.push_to)
    except HFValidationError as error:
        raise UserError(f"--push_to {config.push_to!r} is not the name of a repository: {error}") from error
    if config.push_to.count("/") != 1:
        raise UserError(f"--push_to {config.push_to!r} must be of the form user/name")


def _write_folder(folder: Path, source: CheckpointSource, checkpoint: Checkpoint, config: ExportConfig) -> None:
    """Write every file of an export into a new folder."""
    path = folder / (LATEST if config.format == "pt" else SAFETENSORS)
    with atomic_path(path) as temporary, surface_os_errors():
        if config.format == "pt":
            with temporary.open("wb") as file:
                torch.save({"model": checkpoint}, file)
        else:
            tensors = _flatten(checkpoint)
            save_file(tensors, temporary, metadata=checksums(tensors))
    values = _configuration(source)
    write_json(folder / "config.json", values)
    record = None
    if source.folder is not None and (source.folder / PROVENANCE).is_file():
        record = _public_record(read_json(source.folder / PROVENANCE, "the run's provenance"), source.path)
        write_json(folder / PROVENANCE, record)
    write_text(folder / "README.md", model_card(values, checkpoint, record, path.relative_to(folder), config.push_to))


def _flatten(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return tensors by `module.name`; the tied head, which readers restore, is left out."""
    tensors = {}
    for module, values in checkpoint.items():
        tied = TIED_HEAD in values and EMBEDDING in values and torch.equal(values[TIED_HEAD], values[EMBEDDING])
        for name, value in values.items():
            if not (tied and name == TIED_HEAD):
                tensors[f"{module}.{name}"] = value.contiguous()
    return tensors


def _configuration(source: CheckpointSource) -> dict[str, Any]:
    """Return the content of the exported `config.json`."""
    if source.folder is None:
        return {"model": source.fields}
    values = read_config(source.folder)
    public = {name: values[name] for name in _PUBLIC if name in values}
    dataset = values.get("dataset")
    if isinstance(dataset, dict) and "dataset_id" in dataset:
        public["dataset"] = {"dataset_id": dataset["dataset_id"]}
    public["model"] = values["model"]
    if ADAPTER in read_tensors(source.path, verify=False).get("model", {}):
        # The settings of the merged adapters; readers go by the checkpoint, which holds no adapters any more.
        public["merged_lora"] = values[ADAPTER]
    return public


def _public_record(provenance: Any, path: Path) -> dict[str, Any]:
    """Return a run's provenance without its command line and folders, and with the exported file's hash."""
    record = {name: value for name, value in dict(provenance).items() if name != "command"}
    for name in ("code", "data", "weights"):
        entry = record.get(name)
        record[name] = dict(entry) if isinstance(entry, dict) else {}
        if record[name].get("path") is not None:
            record[name]["path"] = Path(str(record[name]["path"])).name
    return record | {"exported_from": {"path": path.name, "sha256": sha256_file(path)}}


def push(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Upload a folder to a repository, made where there is none, and return its address; `HF_ENDPOINT` names the hub.

    `private` refuses a repository that is open to everybody; without a token that of the hub's own login is taken.

    Raises:
        UserError: The hub cannot be reached or refuses, or the repository is not private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    again = f"the folder is whole; to try again: hf upload {repo_id} {folder}"
    api = HfApi(token=token)
    check_network_variables()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        is_open = private and not api.model_info(repo_id).private
        if not is_open:
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload the model"))
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{repo_id} cannot be uploaded to ({type(error).__name__}: {reason(error, 200)}): check "
            f"the network and that the token (--hf_token, or hf auth login) may write there; {again}"
        ) from error
    raise UserError(
        f"the repository {repo_id} is there already and is open to everybody, so nothing was uploaded: give --private "
        f"false if that is wanted, or another --push_to; {again}"
    )


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

```python
import cobra

vlm = cobra.load("{folder}")
print(vlm.ask("photo.jpg", "What is in the picture?"))
```
{download}
To train on from here: `cobra-vlm train --pretrained_checkpoint {folder}`.

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
    config: dict[str, Any], checkpoint: Checkpoint, record: dict[str, Any] | None, weights: Path, repo_id: str | None
) -> str:
    """Return a model card as Markdown.

    Args:
        config: The exported `config.json`.
        checkpoint: The exported weights.
        record: The exported provenance; None for a model as released.
        weights: Their file, relative to the folder.
        repo_id: Repository of the hub that the folder is uploaded to, if any.
    """
    folder = repo_id.partition("/")[2] if repo_id else "path/to/this/folder"
    facts = _facts(config, checkpoint, record)
    dataset_id = str((config.get("dataset") or {}).get("dataset_id"))
    return _CARD.format(
        title=_cell(config.get("run_id") or config["model"]["model_id"]),
        weights=weights.as_posix(),
        folder=folder,
        download=f"\nfetched by `hf download {repo_id} --local-dir {folder}`.\n" if repo_id else "",
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


if __name__ == "__main__":
    raise SystemExit(f"this module is no program; run: {command_line('export')}")
