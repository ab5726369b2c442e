"""Weights that are not what was written, not finite, or no weights at all: told when they are read, by name."""

import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scratch import scratch_fields, scratch_vlm
from torch import nn

import cobra
from cobra.export.export import ExportConfig, export
from cobra.models.checkpoint import MODULE_KEYS, read_checkpoint
from cobra.models.integrity import checksums
from cobra.models.run_folder import LATEST
from cobra.models.tensors import load_strictly, read_llm_weights, read_tensors
from cobra.util.errors import UserError
from cobra.util.files import write_json

W = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def write(path, **tensors):
    torch.save({"model": {"projector": tensors}}, path)
    return path


def write_run(folder, spoil=None):
    """A run directory of the small model, one of whose weights may be spoiled."""
    vlm = scratch_vlm()
    states = {key: getattr(vlm, key).state_dict() for key in MODULE_KEYS}
    modules = {key: {name: value.clone() for name, value in state.items()} for key, state in states.items()}
    if spoil is not None:
        modules["projector"]["projector.0.weight"][0, 1:3] = spoil
    (folder / LATEST).parent.mkdir(parents=True)
    torch.save({"model": modules}, folder / LATEST)
    fields = {name: value for name, value in scratch_fields().items() if isinstance(value, str | int)}
    write_json(folder / "config.json", {"model": fields})
    return folder


@pytest.mark.fault("B6")
@pytest.mark.parametrize("content", [{"w": torch.randn(64, 64)}, {"w": W}])
def test_flipped_byte_of_a_pt_is_told_wherever_torch_would_read_it(tmp_path, content):
    path = write(tmp_path / "model.pt", **content)
    whole = path.read_bytes()
    start = whole.index(content["w"].numpy().tobytes())
    for place in (start, start + content["w"].nbytes // 2, start + content["w"].nbytes - 1):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"model\.pt is damaged: .*Bad CRC-32.*earlier checkpoint"):
            read_checkpoint(path)
        assert "projector" in read_checkpoint(path, verify=False)


@pytest.mark.fault("B6")
def test_flipped_byte_of_our_safetensors_names_the_tensor(tmp_path):
    path = export(
        ExportConfig(checkpoint=str(write_run(tmp_path / "run")), output=tmp_path / "out", format="safetensors")
    )
    path = path / "model.safetensors"
    values = load_file(path)
    name = "projector.projector.0.weight"
    content = bytearray(path.read_bytes())
    content[content.index(values[name].numpy().tobytes()[:64]) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: .*{name}"):
        read_checkpoint(path)
    # Files of others have no checksums.
    save_file(values, path)
    assert "projector" in read_checkpoint(path)


@pytest.mark.fault("B6")
@pytest.mark.parametrize("text", ["{", "[1]", '{"projector.w": "x"}', "[" * 100_000])
def test_checksums_of_a_stranger_are_compared_or_refused(tmp_path, text):
    save_file({"projector.w": W}, tmp_path / "model.safetensors", metadata={"crc32": text})
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_checksums_hold_for_tensors_of_any_layout(tmp_path):
    tensors = {"projector.a": W.T, "projector.b": torch.tensor(1.5), "projector.c": torch.empty(0, 3).bfloat16()}
    save_file({n: v.contiguous() for n, v in tensors.items()}, tmp_path / "m.safetensors", metadata=checksums(tensors))
    assert torch.equal(read_checkpoint(tmp_path / "m.safetensors")["projector"]["a"], W.T)


@pytest.mark.fault("B4")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    tensors = {"weight": W.clone(), "bias": torch.zeros(2)}
    tensors["weight"][1, 1:] = value
    with pytest.raises(UserError, match=r"the p in the file .* in 1 of 2 tensors: weight; 2 of the 6 numbers"):
        load_strictly(module, tensors, "p", "the file")
    assert torch.equal(module.weight, before)


@pytest.mark.fault("B4")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_at_the_ends_of_a_dtype_are_finite_where_fp32_holds_them(dtype):
    module = nn.Linear(3, 2, bias=False)
    most = torch.finfo(dtype).max
    tensors = {"weight": torch.full((2, 3), most, dtype=dtype)}
    if dtype == torch.float64:
        with pytest.raises(UserError, match="not finite"):
            load_strictly(module, tensors, "p", "f")
    else:
        load_strictly(module, tensors, "p", "f")
        assert module.weight.max() == most


@pytest.mark.fault("B4")
def test_model_that_is_not_finite_is_neither_loaded_nor_exported(tmp_path):
    run = write_run(tmp_path / "run", float("nan"))
    with pytest.raises(
        UserError, match=r"latest-checkpoint\.pt holds numbers that are not finite.*projector\.0\.weight"
    ):
        cobra.load(run)
    with pytest.raises(UserError, match="not finite"):
        export(ExportConfig(checkpoint=str(run), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def odd_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "nested": torch.nested.nested_tensor([W[0], W[1][:2]]),
            "jagged": torch.nested.nested_tensor([W[0], W[1][:2]], layout=torch.jagged),
            "sparse": W.to_sparse(),
            "csr": W.to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8),
            "meta": W.to("meta"),
            "float8": W.to(torch.float8_e4m3fn),
            "complex": W.to(torch.complex64),
            "integers": W.long(),
            "expanded": torch.zeros(1).expand(1 << 40, 1 << 10),
        }


@pytest.mark.fault("B6")
@pytest.mark.parametrize("kind", odd_tensors())
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(tmp_path / "model.pt", **{"\x1b[2Jw": odd_tensors()[kind]})
        with pytest.raises(UserError, match=r"model\.pt") as error:
            read_checkpoint(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [W.T, W[:, 1:], torch.zeros(100)[:6].reshape(2, 3), nn.Parameter(W)])
def test_tensors_of_any_strides_are_weights(tmp_path, value):
    found = read_checkpoint(write(tmp_path / "model.pt", w=value))["projector"]["w"]
    assert torch.equal(found, value)


@pytest.mark.fault("B6")
def test_names_cannot_write_on_the_terminal(tmp_path):
    torch.save({"\x1b[31m": W}, tmp_path / "model.pt")
    torch.save({"x\u202e\x07": W}, tmp_path / "other.pt")
    messages = []
    for name in ("model.pt", "other.pt"):
        with pytest.raises(UserError) as error:
            read_checkpoint(tmp_path / name)
        messages.append(str(error.value))
    with pytest.raises(UserError) as error:
        load_strictly(nn.Linear(1, 1), {"\x1b]0;title\x07": W}, "p", "f")
    assert all(message.isprintable() for message in [*messages, str(error.value)])


@pytest.mark.fault("B6")
def test_archive_that_was_compressed_again_is_refused(tmp_path):
    whole = write(tmp_path / "whole.pt", w=torch.zeros(100_000))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="compressed"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.fault("C3")
def test_old_format_of_torch_is_read(tmp_path):
    values = {"model": {"projector": {"w": W}}}
    torch.save(values, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "model.pt")["projector"]["w"], W)
    torch.save({"backbone.norm_f.weight": W}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_llm_weights(tmp_path / "pytorch_model.bin")["backbone.norm_f.weight"], W)


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.py")


def program(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)


OTHERS = {
    "TorchScript": program,
    "packed archive": tar,
    "NumPy": lambda path: np.savez(path.open("wb"), a=np.ones(2)),
    "zip archive of other files": lambda path: zipfile.ZipFile(path, "w").writestr("model/readme.txt", "x"),
    "web page": lambda path: path.write_text("<!doctype html><title>403</title>"),
    "Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "Lightning": lambda path: torch.save({"pytorch-lightning_version": "2", "state_dict": {"w": W}}, path),
}


@pytest.mark.fault("C3")
@pytest.mark.parametrize("told", OTHERS)
def test_files_that_are_something_else_are_called_by_their_name(tmp_path, told):
    OTHERS[told](tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"model.pt is .*{told}"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.fault("C3")
def test_byte_order_mark_in_a_config_is_taken(tmp_path):
    run = write_run(tmp_path / "run")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text, encoding="utf-8-sig")
    assert cobra.load(run).checkpoint_path == run / LATEST
