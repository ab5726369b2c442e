"""Files that a user takes from others run nothing: an object is planted in each, and is never called."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scratch import scratch_fields, scratch_vlm

import cobra
from cobra.evaluation.data.hub_dataset import read_hub_captions
from cobra.evaluation.metrics.similarity import SentenceSimilarity, packaged_model
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.checkpoint import read_checkpoint
from cobra.models.run_folder import LATEST
from cobra.models.tensors import read_llm_weights, read_tensors
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.datasets.token_lengths import token_lengths
from cobra.training.config import PretrainConfig
from cobra.util.cli import parse
from cobra.util.errors import UserError
from cobra.util.files import read_json

pytestmark = pytest.mark.fault("B1")
ROOT = Path(__file__).parents[1]


class Gadget:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


@pytest.fixture
def gadget(tmp_path_factory):
    marker = tmp_path_factory.mktemp("marker") / "was-called"
    yield Gadget(marker)
    assert not marker.exists()


def test_what_is_planted_would_tell(tmp_path):
    pickle.loads(pickle.dumps(Gadget(tmp_path / "was-called")))  # noqa: S301 - of this test's own
    assert (tmp_path / "was-called").is_dir()


def torch_file(path, gadget):
    torch.save({"model": {"projector": {"w": gadget}}}, path)


def old_torch_file(path, gadget):
    torch.save({"model": {"projector": {"w": gadget}}}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path, gadget):
    path.write_bytes(pickle.dumps(gadget))


def numpy_archive(path, gadget):
    with path.open("wb") as file:
        np.savez(file, key=np.array([gadget], dtype=object))


# Rows of the table "Files from others": the test that plants an object there; None where it is left to a library.
PLANTED = {
    "a state's `.metadata`": "training/test_state_reader.py::test_objects_in_metadata_are_never_called",
    "a state's `.distcp`": "training/test_state_reader.py::test_values_that_are_no_tensors_are_not_unpickled",
    "`.pt`, `.bin`, towers, adapters": "test_trust.py::test_file_from_others_runs_nothing",
    "`.safetensors`": "test_trust.py::test_file_from_others_runs_nothing",
    "tokenizer folder": "test_trust.py::test_tokenizer_from_others_runs_nothing",
    "sentence model": "test_trust.py::test_sentence_model_of_others_unpickles_nothing",
    "towers by timm's id": None,
    "row caches, token counts": "test_trust.py::test_caches_beside_rows_of_others_run_nothing",
    "hub and caption sets": "test_trust.py::test_data_set_with_a_script_of_its_own_runs_nothing",
    "`config.json`, rows, predictions, `state.json`": "test_trust.py::test_file_from_others_runs_nothing",
    "`--config_path`": "test_trust.py::test_config_file_from_others_runs_nothing",
    "numba's compiled loops": (
        "models/mamba/test_numba_lanes.py::test_compiled_code_is_not_taken_from_a_folder_that_everybody_writes_to"
    ),
    "archives": "preprocessing/test_archives.py::test_any_damage_is_a_user_error_and_nothing_leaves_the_folder",
}


def test_list_of_files_from_others_is_that_of_the_documents():
    document = (ROOT / "FINETUNING_IMPLEMENTATION.md").read_text(encoding="utf-8")
    table = document.partition("## Files from others")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(PLANTED)
    for test in filter(None, PLANTED.values()):
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


def test_config_file_from_others_runs_nothing(tmp_path, gadget):
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir [{str(gadget._marker)!r}]\n")
    with pytest.raises(UserError):
        parse(PretrainConfig, ["--config_path", str(path)])


def test_data_set_with_a_script_of_its_own_runs_nothing(tmp_path, gadget):
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "captions.py").write_text(f"import os\nos.mkdir({str(gadget._marker)!r})\n")
    with pytest.raises(UserError):
        read_hub_captions(folder, None)


READERS = {
    "latest-checkpoint.pt": read_checkpoint,
    "model.safetensors": read_checkpoint,
    "pytorch_model.bin": read_llm_weights,
    "tower.pt": read_tensors,
    "predictions.json": lambda path: read_json(path, "the predictions file", lines=True),
    "rows.json": read_rows,
}


@pytest.mark.parametrize("plant", [torch_file, old_torch_file, bare_pickle, numpy_archive])
@pytest.mark.parametrize("name", READERS)
def test_file_from_others_runs_nothing(tmp_path, gadget, name, plant):
    plant(tmp_path / name, gadget)
    with pytest.raises(UserError, match=name):
        READERS[name](tmp_path / name)


def test_run_directory_from_others_runs_nothing(tmp_path, gadget):
    (tmp_path / LATEST).parent.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model": scratch_fields()}, default=str))
    torch_file(tmp_path / LATEST, gadget)
    with pytest.raises(UserError, match="unpickling objects could run foreign code"):
        cobra.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_tokenizer_from_others_runs_nothing(tmp_path, gadget, name):
    for path in TINY_FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    bare_pickle(tmp_path / name, gadget)
    # An older name for what tokenizer.json holds is passed over.
    try:
        load_tokenizer(tmp_path, 64)
    except UserError as error:
        assert str(tmp_path) in str(error)


def test_tokenizer_cannot_name_code_of_its_folder(tmp_path, gadget):
    for path in TINY_FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(gadget._marker)!r})\n")
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}, "tokenizer_class": "own.Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values | named))
    assert len(load_tokenizer(tmp_path, 64)) > 0


@pytest.mark.parametrize("kind", ["own.Model", "os.mkdir"])
def test_sentence_model_cannot_name_code_of_its_folder(tmp_path, gadget, kind):
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(gadget._marker)!r})\n")
    entry = {"idx": 0, "name": "0", "path": str(gadget._marker) if kind == "os.mkdir" else "", "type": kind}
    (tmp_path / "modules.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match="cannot load"):
        SentenceSimilarity(tmp_path, "cpu")


def test_sentence_model_of_others_unpickles_nothing(tmp_path, gadget):
    for path in packaged_model().iterdir():
        if path.name != "model.safetensors":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    torch.save({"embeddings.word_embeddings.weight": gadget}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        SentenceSimilarity(tmp_path, "cpu")


@pytest.mark.parametrize("plant", [numpy_archive, bare_pickle, torch_file])
def test_caches_beside_rows_of_others_run_nothing(tmp_path, gadget, plant):
    rows = [{"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = scratch_vlm().llm_backbone
    arguments = (tmp_path / "rows.json", tokenizer.tokenizer, tokenizer.prompt_builder_fn)
    expected = token_lengths(*arguments).tokens
    caches = [path for path in tmp_path.glob(".rows.json*") if path.suffix != ".lock"]
    assert len(caches) >= 2
    for path in caches:
        plant(path, gadget)
    assert token_lengths(*arguments).tokens.tolist() == expected.tolist()


def test_program_never_asks_for_unpickling():
    """What would unpickle stands nowhere in the sources: modules that do, and functions that do unless told not to."""
    found = []
    for path in [*(ROOT / "cobra").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), ROOT / "benchmark.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {str(getattr(node, "module", ""))}
                if names & {"dill", "cloudpickle", "joblib", "shelve", "marshal", "_pickle"}:
                    found.append(where)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                flags = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                if called == "torch.load" and flags.get("weights_only") is not True:
                    found.append(where)
                if called == "np.load" and flags.get("allow_pickle") is not False:
                    found.append(where)
                if called.startswith("pickle.") or called in ("yaml.load", "yaml.unsafe_load"):
                    found.append(where)
                if called.endswith("dcp.load") and not {"storage_reader", "planner"} <= flags.keys():
                    found.append(where)
                if flags.get("trust_remote_code"):
                    found.append(where)
    assert found == []
