"""Exports: read back as they were, whole or absent, telling what they are of and nothing of the machine; uploads."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from lora_run import adapted_vlm, write_lora_run
from safetensors import SafetensorError
from scratch import picture
from small_disk import small_disk

import cobra
from cobra.export import export as export_module
from cobra.export import own_formats
from cobra.export.card import model_card
from cobra.export.config import ExportConfig
from cobra.export.export import PARITY, export
from cobra.export.formats import FORMATS as KNOWN
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.checkpoint import read_checkpoint
from cobra.models.run_folder import LATEST, PROVENANCE
from cobra.models.tensors import EMBEDDING, TIED_HEAD
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

START = TINY_FOLDER / "model.safetensors"
FORMATS = {"pt": LATEST.as_posix(), "safetensors": "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with adapters."""
    return write_lora_run(tmp_path_factory.mktemp("run") / "adapted", adapted_vlm(START), START, "cobra-tiny")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "folder" / "exported"


def export_run(run, output, **options):
    return export(ExportConfig(checkpoint=str(run), output=output, **options))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for module, tensors in expected.items():
        assert found[module].keys() == tensors.keys()
        assert all(torch.equal(found[module][name], value) for name, value in tensors.items())


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_is_the_merged_model_without_the_run(run, output, kind):
    assert export_run(run, output, format=kind) == output
    assert files(output) == sorted(["README.md", "config.json", FORMATS[kind], PARITY, PROVENANCE])
    assert_same(read_checkpoint(output / FORMATS[kind]), read_checkpoint(run / LATEST))
    prompt = "<|user|>\nwhat is there?<|endoftext|>\n<|assistant|>\n"
    exported, adapted = cobra.load(output, device="cpu"), cobra.load(run, device="cpu")
    assert not exported.is_stock
    assert exported.generate(picture(1), prompt) == adapted.generate(picture(1), prompt)


@pytest.mark.parametrize("kind", FORMATS)
def test_parity_of_the_own_formats_is_of_every_tensor(run, output, kind):
    export_run(run, output, format=kind)
    parity = json.loads((output / PARITY).read_text())
    count = sum(len(tensors) for tensors in read_checkpoint(run / LATEST).values()) - 1
    assert parity == {
        "format": kind,
        "passed": True,
        "compared": "tensors, bit by bit",
        "tensors": count,
        "equal": count,
        "first_difference": None,
    }


def test_a_wrong_export_is_an_error_and_leaves_nothing(run, output, monkeypatch):
    written = own_formats.save_file

    def spoil(tensors, path, metadata):
        changed = {name: value + (name == "projector.projector.0.bias") for name, value in tensors.items()}
        written(changed, path)

    monkeypatch.setattr(own_formats, "save_file", spoil)
    with pytest.raises(UserError, match=r"the export as safetensors is not the model: .*projector\.projector\.0\.bias"):
        export_run(run, output, format="safetensors")
    assert not list(output.parent.iterdir())
    export_run(run, output, format="safetensors", parity=0)
    assert not (output / PARITY).exists()


SLOW_EXPORT = """
import sys, time
from cobra.export import own_formats
from cobra.commands.export import COMMAND

def write(tensors, path, metadata):
    path.write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)

own_formats.save_file = write
COMMAND.run(["cobra-tiny", "--format", "safetensors", "--output", sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP), (signal.SIGINT, 130)]
)
def test_an_export_that_is_ended_leaves_nothing(output, number, code):
    # What is started in the background of a script, or under nohup, ignores some of them.
    taken = partial(signal.signal, number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    command = [sys.executable, "-c", SLOW_EXPORT, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=taken) as program:
        assert b"writing\n" in program.stdout
        assert list(output.parent.iterdir())
        program.send_signal(number)
        _, told = program.communicate(timeout=30)
    assert program.returncode == code and b"Traceback" not in told
    assert not list(output.parent.iterdir())


def test_cobras_layout_holds_the_tied_head_once(run, output):
    export_run(run, output)
    modules = torch.load(output / LATEST, weights_only=True)["model"]
    assert {"projector", "llm_backbone"} <= modules.keys()
    llm = modules["llm_backbone"]
    assert llm[TIED_HEAD].data_ptr() == llm[EMBEDDING].data_ptr()
    assert not any("lora" in name for name in llm)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_as_released_stays_one(output, kind):
    export_run("cobra-tiny", output, format=kind)
    assert files(output) == sorted(["README.md", "config.json", FORMATS[kind], PARITY])
    assert cobra.load(output, device="cpu").is_stock
    assert_same(read_checkpoint(output / FORMATS[kind]), read_checkpoint(START))


def test_a_link_to_nothing_is_refused_as_the_output_before_anything_is_read(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match="link exists already"):
        export_run("nowhere", tmp_path / "link")


def test_an_export_can_be_exported_again(run, output, tmp_path):
    export_run(run, output, format="safetensors")
    export_run(output, tmp_path / "again")
    export_run(output / "model.safetensors", tmp_path / "and again")
    assert_same(read_checkpoint(tmp_path / "again" / LATEST), read_checkpoint(run / LATEST))
    assert_same(read_checkpoint(tmp_path / "and again" / LATEST), read_checkpoint(run / LATEST))


def test_nothing_of_the_machine_is_told(run, output):
    export_run(run, output)
    for name in ("README.md", "config.json", PROVENANCE):
        text = (output / name).read_text()
        assert "somebody" not in text
        assert "token" not in text
        assert str(START.parent) not in text


def test_the_record_and_the_card_say_what_it_was_made_of(run, output):
    export_run(run, output)
    record = json.loads((output / PROVENANCE).read_text())
    assert record["data"] == {"path": "rows.json", "sha256": "5" * 64, "rows": 1234}
    assert record["weights"]["path"] == "model.safetensors"
    assert record["exported_from"] == {"path": "latest-checkpoint.pt", "sha256": sha256_file(run / LATEST)}
    card = (output / "README.md").read_text()
    tensors = read_checkpoint(run / LATEST)["llm_backbone"]
    count = sum(value.numel() for name, value in tensors.items() if name != TIED_HEAD)
    for expected in (
        "# adapted\n",
        "license: other",
        f"| Parameters of the llm_backbone | {count:,} |",
        "| Training of the language model | low-rank adapters, merged: rank 3, alpha 5, on in_proj, x_proj, dt_proj, ",
        "| Data | custom, 1234 rows |",
        f"| SHA-256 of the start | {sha256_file(START)} |",
        "- the training data: see its pages.\n",
    ):
        assert expected in card
    assert "hf download" not in card


def test_the_card_tells_the_terms_of_llava_cot():
    fields = dict.fromkeys(("model_id", "llm_backbone_id", "vision_backbone_id", "arch_specifier"), "x")
    config = {"model": fields, "dataset": {"dataset_id": "llava-cot-100k"}}
    assert "GPT-4o (OpenAI's terms)" in model_card(config, {}, None, KNOWN["pt"], None)


def test_the_code_of_the_card_runs(run, output, tmp_path, monkeypatch):
    export_run(run, output)
    (code,) = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    picture(1).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    answers = []
    exec(code.replace("path/to/this/folder", str(output)), {"print": answers.append})  # noqa: S102
    assert isinstance(answers[0], str)


def test_a_damaged_table_is_not_made_by_odd_names(run, output):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"run_id": "a | b\n# c"}))
    try:
        export_run(run, output)
    finally:
        (run / "config.json").write_text(json.dumps(config))
    assert "# a \\| b # c\n" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "zip"}, "--format 'zip' is unknown; the known ones are: pt, safetensors, transformers"),
        ({"parity": -1}, "--parity is -1 and must be 0 or more questions"),
        ({"push_to": "a b/c"}, "--push_to 'a b/c' is not the name of a repository"),
        ({"push_to": "name"}, "--push_to 'name' must be of the form user/name"),
    ],
)
def test_flags_are_checked_before_anything_is_read(output, options, message, monkeypatch):
    monkeypatch.setattr(export_module, "find_checkpoint", None)
    with pytest.raises(UserError, match=re.escape(message)):
        export_run("cobra-tiny", output, **options)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists already: choose another folder"):
        export_run("cobra-tiny", tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(errno.ENOSPC, "x"), "the disk is full"), (SafetensorError("I/O error"), "I/O error")]
)
def test_what_cannot_be_written_leaves_nothing(run, output, monkeypatch, error, reason):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(own_formats, "save_file", fail)
    with pytest.raises(UserError, match=rf"cannot be written \({reason}\); nothing is left of it"):
        export_run(run, output, format="safetensors")
    assert not list(output.parent.iterdir())


@pytest.mark.fault("A10")
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, kind):
    with small_disk(tmp_path / "disk", 1_000) as disk:
        with pytest.raises(UserError, match=r"model cannot be written \(the disk is full\); nothing is left of it"):
            export_run("cobra-tiny", disk.folder / "model", format=kind)
        assert not list(disk.folder.iterdir())


def test_an_interrupt_leaves_nothing(run, output, monkeypatch):
    def interrupt(*arguments):
        assert any(output.parent.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, output)
    assert not list(output.parent.iterdir())


def test_files_have_the_permissions_of_any_other(run, output):
    export_run(run, output)
    umask = os.umask(0)
    os.umask(umask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in output.rglob("*") if path.is_file())
    assert output.stat().st_mode & 0o777 == 0o777 & ~umask


class Hub:
    """Records what is asked of the hub."""

    def __init__(self, is_private=True, failing=None):
        self.calls = []
        self.is_private = is_private
        self.failing = failing

    def __call__(self, token):
        self.calls.append(("login", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.failing is not None:
            raise self.failing
        self.calls.append(("create", repo_id, private, exist_ok))

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, files(folder_path)))
        return f"https://hub/{repo_id}"


@pytest.mark.parametrize("private", [True, False])
def test_an_upload(run, output, monkeypatch, capsys, private):
    monkeypatch.setenv("MY_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub := Hub(is_private=private))
    export_run(run, output, push_to="user/name", private=private, hf_token="MY_TOKEN")
    assert hub.calls == [
        ("login", "hf_secret"),
        ("create", "user/name", private, True),
        ("upload", "user/name", ["README.md", LATEST.as_posix(), "config.json", PARITY, PROVENANCE]),
    ]
    assert "uploaded: https://hub/user/name" in capsys.readouterr().out
    assert "hf download user/name --local-dir name" in (output / "README.md").read_text()


def test_a_private_upload_does_not_go_into_an_open_repository(run, output, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", hub := Hub(is_private=False))
    with pytest.raises(UserError, match="open to everybody, so nothing was uploaded.*--private false"):
        export_run(run, output, push_to="user/name")
    assert [call[0] for call in hub.calls] == ["login", "create"]
    assert (output / LATEST).is_file()


def test_a_refused_upload_leaves_the_folder_and_says_how_to_go_on(run, output, monkeypatch):
    refusal = HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None, status_code=403))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(failing=refusal))
    with pytest.raises(UserError, match=rf"403 Forbidden.*hf upload user/name {output}"):
        export_run(run, output, push_to="user/name")
    assert (output / LATEST).is_file()


def test_a_hub_that_cannot_be_reached(run, output, monkeypatch):
    """Through the real client; nothing listens on that port."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"user/name cannot be uploaded to \(Connect"):
        export_run(run, output, push_to="user/name", hf_token="no such")
