"""Export a model as one folder of weights, configuration, record and model card, and upload it to the hub."""

import errno
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from cobra.export.card import model_card
from cobra.export.config import ExportConfig
from cobra.export.formats import ExportedModel, Format, format_of
from cobra.export.push import push
from cobra.models.checkpoint import ADAPTER, read_whole_model
from cobra.models.integrity import check_finite
from cobra.models.run_folder import PROVENANCE, CheckpointSource, find_checkpoint, read_config
from cobra.models.tensors import read_tensors
from cobra.util.errors import UserError, check_known, check_values
from cobra.util.files import read_json, sha256_file, write_json, write_text
from cobra.util.program import command_line
from cobra.util.redaction import reason
from cobra.util.tokens import read_hf_token

# The comparison of what was written with the model.
PARITY = "parity.json"
# Exported entries of a run's configuration; the rest names folders and accounts of the machine that trained.
_PUBLIC = ("run_id", "stage", "seed")


def export(config: ExportConfig) -> Path:
    """Export a model and return the folder, which appears under its name when it is whole.

    Raises:
        UserError: A flag makes no sense, the model cannot be found or read, the folder exists or cannot be written,
            what was written is not the model, or the hub refuses the upload.
    """
    chosen = _check_config(config)
    say = Console(soft_wrap=True, highlight=False).print
    token = read_hf_token(config.hf_token)
    source = find_checkpoint(config.checkpoint, token)
    checkpoint = read_whole_model(source.path)
    for module, tensors in checkpoint.items():
        check_finite(tensors, f"the {module} in {source.path}")
    say(f"read {source.path}: {', '.join(checkpoint)}", markup=False)
    model = ExportedModel(source, checkpoint, _configuration(source), chosen.weights, config.checkpoint, token)
    model.dtype = config.dtype
    output = config.output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent) as name:
            folder = Path(name) / output.name
            parity = _write_folder(folder, model, chosen, config)
            _check_parity(parity, config)
            folder.rename(output)
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = "the disk is full" if full else reason(error)
        message = f"{output} cannot be written ({problem}); nothing is left of it. Choose another --output"
        raise UserError(message) from error
    size = sum(path.stat().st_size for path in output.rglob("*"))
    say(f"wrote {config.output}: {size / 1e6:,.1f} MB", markup=False)
    if parity:
        total = parity.get("questions", parity.get("tensors"))
        say(f"parity: {parity['equal']} of {total} equal ({parity['compared']})", markup=False)
    if config.push_to is not None:
        say(f"uploaded: {push(output, config.push_to, config.private, token)}", markup=False)
    return config.output


def _check_config(config: ExportConfig) -> Format:
    """Return the format of an export whose flags make sense."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    chosen = format_of(config.format)
    check_known(config.dtype, chosen.dtypes, f"--format {config.format}: --dtype")
    check_values({"parity": (config.parity, config.parity >= 0, "0 or more questions")})
    if config.output.exists() or config.output.is_symlink():
        raise UserError(f"--output {config.output} exists already: choose another folder, or move that one away")
    if config.push_to is None:
        return chosen
    try:
        validate_repo_id(config.push_to)
    except HFValidationError as error:
        raise UserError(f"--push_to {config.push_to!r} is not the name of a repository: {error}") from error
    if config.push_to.count("/") != 1:
        raise UserError(f"--push_to {config.push_to!r} must be of the form user/name")
    return chosen


def _write_folder(folder: Path, model: ExportedModel, chosen: Format, config: ExportConfig) -> dict[str, Any]:
    """Write every file of an export into a new folder; return the content of its `parity.json`, empty without one."""
    folder.mkdir()
    writer, source = chosen.writer(), model.source
    values = model.values | writer.write(model, folder)
    write_json(folder / "config.json", values)
    record = None
    if source.folder is not None and (source.folder / PROVENANCE).is_file():
        record = _public_record(read_json(source.folder / PROVENANCE, "the run's provenance"), source.path)
        write_json(folder / PROVENANCE, record)
    write_text(folder / "README.md", model_card(values, model.checkpoint, record, chosen, config.push_to))
    if not config.parity:
        return {}
    parity = {"format": config.format} | writer.prove(model, folder, config.parity)
    write_json(folder / PARITY, parity)
    return parity


def _check_parity(parity: dict[str, Any], config: ExportConfig) -> None:
    """Raise a UserError where what was written does not do what the model does."""
    if parity and not parity["passed"]:
        raise UserError(
            f"the export as {config.format} is not the model: {parity['equal']} of "
            f"{parity.get('questions', parity.get('tensors'))} are equal in the comparison ({parity['compared']}), and "
            f"the first that is not: {parity['first_difference']}. Nothing was written to {config.output}; --parity 0 "
            "writes it without the comparison, to look at it"
        )


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


if __name__ == "__main__":
    raise SystemExit(f"this module is no program; run: {command_line('export')}")
