"""Reading weights: every layout that is known, and a clear refusal of everything else."""

import re
import warnings
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scratch import scratch_vlm
from torch import nn

from cobra.models.checkpoint import read_checkpoint
from cobra.models.tensors import load_strictly, read_llm_weights, read_tensors
from cobra.models.vlms import CobraVLM
from cobra.util.errors import UserError

MODULES = ("projector", "llm_backbone", "vision_backbone")


@pytest.fixture(scope="module")
def vlm() -> CobraVLM:
    return scratch_vlm()


def states(vlm, *modules):
    return {key: getattr(vlm, key).state_dict() for key in modules}


def flat(vlm, *modules):
    """Names as in a safetensors file, which holds a tied weight once."""
    values = {
        f"{key}.{name}": value for key, tensors in states(vlm, *modules).items() for name, value in tensors.items()
    }
    values.pop("llm_backbone.llm.lm_head.weight", None)
    return values


def assert_same(modules, expected):
    assert modules.keys() == expected.keys()
    for key, tensors in expected.items():
        assert modules[key].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(modules[key][name], value), name


@pytest.mark.parametrize("modules", [("projector",), ("projector", "llm_backbone"), MODULES])
def test_cobras_layout(vlm, tmp_path, modules):
    torch.save({"model": states(vlm, *modules)}, tmp_path / "model.pt")
    assert_same(read_checkpoint(tmp_path / "model.pt"), states(vlm, *modules))


def test_safetensors_without_the_tied_head(vlm, tmp_path):
    save_file(flat(vlm, *MODULES), tmp_path / "model.safetensors")
    assert_same(read_checkpoint(tmp_path / "model.safetensors"), states(vlm, *MODULES))


def test_further_modules_are_left_out(vlm, tmp_path):
    values = {"model": states(vlm, "projector") | {"ema": {"a": 1}}, "optimizer": {"state": [1, 2]}}
    torch.save(values, tmp_path / "model.pt")
    assert list(read_checkpoint(tmp_path / "model.pt")) == ["projector"]


class Gadget:
    def __reduce__(self):
        return print, ("a foreign call",)


@pytest.mark.parametrize("found", [Gadget(), nn.Linear(1, 1)])
def test_objects_are_not_unpickled(tmp_path, capsys, found):
    torch.save({"model": {"projector": found}}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="unpickling objects could run foreign code.*torch.save") as error:
        read_checkpoint(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(error.value)
    assert capsys.readouterr().out == ""


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match="does not exist: .*model.pt"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x00" * 64, b"PK\x03\x04half"])
def test_a_file_of_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read_checkpoint(tmp_path / name)


W = torch.ones(2)
FORMS = {
    "a list": ([W], "expected the modules"),
    "a tensor": (W, "expected the modules"),
    "a bare state dict": ({"weight": W, "bias": W}, "found weight, bias"),
    "names that are numbers": ({1: W}, "found 1"),
    "nothing": ({}, "expected the modules"),
    "no module": ({"model": {}}, "expected the modules"),
    "other modules": ({"model": {"encoder": {"w": W}}}, "vision_backbone, llm_backbone, projector"),
    "a module of numbers": ({"model": {"projector": {"w": 3}}}, "'w', which is not an ordinary tensor but a int"),
    "a module that is a list": ({"model": {"projector": [W]}}, "the projector in .* is a list"),
    "numbers as names": ({"model": {"projector": {0: W}}}, "holds 0"),
    "integers": ({"model": {"projector": {"w": torch.ones(2, dtype=torch.int64)}}}, "torch.int64"),
    "complex numbers": ({"model": {"projector": {"w": torch.ones(2, dtype=torch.complex64)}}}, "complex64"),
    "sparse": ({"model": {"projector": {"w": torch.eye(2).to_sparse()}}}, "sparse_coo"),
    "without storage": ({"model": {"projector": {"w": torch.ones(2, device="meta")}}}, "meta"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("case", FORMS)
def test_what_is_no_state_dict_is_named(tmp_path, case):
    value, expected = FORMS[case]
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(UserError, match=expected) as error:
        read_checkpoint(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(error.value)


def mutations(size):
    """A cut-off, or a few changed bytes."""
    flips = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=4)
    return st.integers(0, size - 1) | flips


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    module = nn.Linear(3, 2)
    torch.save({"model": {"projector": module.state_dict()}}, folder / "whole.pt")
    save_file({f"projector.{name}": value for name, value in module.state_dict().items()}, folder / "whole.safetensors")
    return module, folder


@pytest.mark.fault("C3")
@pytest.mark.parametrize(
    ("record", "offset", "value"),
    # The number of disks in the locator of the archive's 64-bit end, and the version that a member asks for.
    [(b"PK\x06\x07", 16, 2), (b"PK\x01\x02", 6, 64)],
    ids=["several disks", "a later version"],
)
def test_an_archive_that_zipfile_raises_at_is_refused(small_files, tmp_path, record, offset, value):
    content = bytearray((small_files[1] / "whole.pt").read_bytes())
    content[content.rindex(record) + offset] = value
    (tmp_path / "odd.pt").write_bytes(content)
    with pytest.raises(UserError, match="odd.pt .*is damaged"):
        read_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=250)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(small_files, suffix, data):
    """Anything but a UserError here would be a traceback, or worse, for the user."""
    module, folder = small_files
    content = bytearray((folder / f"whole{suffix}").read_bytes())
    mutation = data.draw(mutations(len(content)))
    if isinstance(mutation, int):
        del content[mutation:]
    else:
        for place, value in mutation:
            content[place] = value
    path = folder / f"damaged{suffix}"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = read_checkpoint(path)
        if "projector" in checkpoint:
            load_strictly(module, checkpoint["projector"], "projector", path)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_cut_short_is_refused(small_files, suffix):
    _, folder = small_files
    content = (folder / f"whole{suffix}").read_bytes()
    for size in range(0, len(content), 7):
        path = folder / f"cut{suffix}"
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(path)


def test_another_architecture_lists_names_and_shapes(tmp_path):
    tensors = {"0.weight": torch.ones(2, 4), "1.weight": torch.ones(1, 2), "extra.bias": torch.ones(1)}
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(UserError) as error:
        load_strictly(module, tensors, "projector", "the file")
    message = str(error.value)
    assert "the projector in the file is of another architecture" in message
    assert "missing: 0.bias, 1.bias" in message
    assert "not known here: extra.bias" in message
    assert "of another shape: 0.weight (2, 4) instead of (2, 3)" in message
    assert "--model.type" in message
    assert "1.weight" not in message
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))


def test_a_long_list_of_names_is_cut_short():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(UserError, match="missing: .* and 14 more"):
        load_strictly(module, {}, "projector", "the file")


def test_loading_keeps_the_modules_dtype_and_tells_whether_it_changed_anything():
    module = nn.Linear(2, 2)
    same = {name: value.clone() for name, value in module.state_dict().items()}
    assert not load_strictly(module, same, "projector", "the file")
    assert load_strictly(module, {name: (value + 1).to(torch.bfloat16) for name, value in same.items()}, "p", "f")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.bias, (same["bias"] + 1).to(torch.bfloat16).float())


def test_a_head_that_is_not_the_embedding_is_refused(vlm):
    tensors = {name: value.clone() for name, value in vlm.llm_backbone.state_dict().items()}
    tensors["llm.lm_head.weight"] += 1
    with pytest.raises(UserError, match="embedding.weight and llm.lm_head.weight, which are one weight"):
        load_strictly(vlm.llm_backbone, tensors, "llm_backbone", "the file")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_language_models_under_the_names_of_transformers(vlm, tmp_path, suffix):
    expected = vlm.llm_backbone.llm.state_dict()
    theirs = {re.sub(r"\bembedding\b", "embeddings", name): value for name, value in expected.items()}
    del theirs["lm_head.weight"]
    path = tmp_path / f"model{suffix}"
    if suffix == ".bin":
        torch.save(OrderedDict(theirs), path)
    else:
        save_file(theirs, path)
    assert_same({"llm": read_llm_weights(path)}, {"llm": expected})


def test_language_model_out_of_a_whole_model(vlm, tmp_path):
    save_file(flat(vlm, *MODULES), tmp_path / "model.safetensors")
    weights = read_llm_weights(tmp_path / "model.safetensors")
    assert_same({"llm": weights}, {"llm": vlm.llm_backbone.llm.state_dict()})


@pytest.mark.parametrize("value", [[W], {"backbone.norm_f.weight": [1.0]}, {3: W}])
def test_a_language_model_that_is_none(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin"):
        read_llm_weights(tmp_path / "pytorch_model.bin")


def test_a_language_model_without_an_embedding_is_of_another_architecture(vlm, tmp_path):
    save_file({"backbone.norm_f.weight": W}, tmp_path / "model.safetensors")
    weights = read_llm_weights(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="missing: backbone.embedding.weight"):
        load_strictly(vlm.llm_backbone.llm, weights, "language model", "the file")


def test_from_pretrained_needs_a_projector(vlm, tmp_path):
    torch.save({"model": states(vlm, "llm_backbone")}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds llm_backbone and no projector"):
        CobraVLM.from_pretrained(tmp_path / "model.pt", "m", vlm.vision_backbone, vlm.llm_backbone)


def test_from_pretrained_freezes_unless_told_otherwise(tmp_path):
    trained, other = scratch_vlm(1), scratch_vlm(2)
    torch.save({"model": states(trained, *MODULES)}, tmp_path / "model.pt")
    for frozen in (True, False):
        vlm = CobraVLM.from_pretrained(
            tmp_path / "model.pt", "m", other.vision_backbone, other.llm_backbone, freeze_weights=frozen
        )
        assert_same(states(vlm, *MODULES), states(trained, *MODULES))
        assert vlm.training is not frozen
        assert any(parameter.requires_grad for parameter in vlm.parameters()) is not frozen
        other = scratch_vlm(3)


def test_memory_mapping_does_not_tie_the_model_to_the_file(tmp_path):
    """A checkpoint may be replaced while a model that was loaded from it is in use."""
    module = nn.Linear(64, 64)
    torch.save(
        {"model": {"projector": {name: value + 1 for name, value in module.state_dict().items()}}}, tmp_path / "m.pt"
    )
    load_strictly(module, read_tensors(tmp_path / "m.pt")["model"]["projector"], "projector", "m")
    expected = module.weight.clone()
    content = bytearray((tmp_path / "m.pt").read_bytes())
    (tmp_path / "m.pt").write_bytes(bytes(len(content)))
    assert torch.equal(module.weight, expected)
