"""A state from somebody else, or of flipped bytes: nothing in it runs, and what is not as it was written is refused."""

import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import struct

import pytest
import torch
from test_run_state import everything, saver_of, trained

from cobra.training.run_state import RunState, states
from cobra.training.state_reader import read_metadata
from cobra.util.errors import UserError

pytestmark = [pytest.mark.fault("B1"), pytest.mark.fault("B6")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    strategy = trained(1)
    saver = saver_of(strategy, folder)
    saver.begin(RunState(1, 100, 0))
    assert saver.finish() is None
    (path,) = states(folder / "resume")
    return strategy, path


@pytest.fixture
def whole(saved, tmp_path):
    """A state as it was written."""
    return shutil.copytree(saved[1], tmp_path / "step-000001")


@pytest.fixture
def state(whole):
    """The same without its checksums, which a stranger would make anew and states of older versions lack."""
    values = json.loads((whole / "state.json").read_text())
    (whole / "state.json").write_text(json.dumps({name: values[name] for name in values if "sha256" not in name}))
    return whole


class Gadget:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


def restore(saved, path):
    return saver_of(saved[0], path.parent).restore(path)


def unpickled(path):
    return pickle.loads((path / ".metadata").read_bytes())  # noqa: S301 - of this test's own


def rewrite(path, change):
    """Change a state's metadata as its own writer would have written them."""
    metadata = unpickled(path)
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def test_metadata_are_read_as_torch_reads_them(saved):
    ours, theirs = read_metadata(saved[1]), unpickled(saved[1])
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data and ours.storage_data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_metadata_of_every_protocol_are_read(saved, state, protocol):
    metadata = unpickled(state)
    (state / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
    assert read_metadata(state) == read_metadata(saved[1])


PLACES = {
    "alone": None,
    "planner": lambda metadata, gadget: setattr(metadata, "planner_data", gadget),
    "version": lambda metadata, gadget: setattr(metadata, "version", gadget),
    "tensors": lambda metadata, gadget: metadata.state_dict_metadata.update(more=gadget),
    "places": lambda metadata, gadget: metadata.storage_data.update({next(iter(metadata.storage_data)): gadget}),
}


@pytest.mark.parametrize("place", PLACES)
def test_objects_in_metadata_are_never_called(saved, state, tmp_path, place):
    gadget = Gadget(tmp_path / "was-called")
    if PLACES[place] is None:
        (state / ".metadata").write_bytes(pickle.dumps(gadget))
    else:
        rewrite(state, lambda metadata: PLACES[place](metadata, gadget))
    try:
        restore(saved, state)
    except UserError as error:
        assert "step-000001 cannot be read" in str(error) and "Delete that folder" in str(error)
    else:
        # What only torch's writer needs is not looked at.
        assert place in ("planner", "version")
    assert not (tmp_path / "was-called").exists()


def test_metadata_of_one_process_are_not_fallen_back_to(saved, state, tmp_path):
    (state / ".metadata").unlink()
    (state / "__0.metadata").write_bytes(pickle.dumps(Gadget(tmp_path / "was-called")))
    with pytest.raises(UserError, match="cannot be read"):
        restore(saved, state)
    assert not (tmp_path / "was-called").exists()


def test_values_that_are_no_tensors_are_not_unpickled(saved, state, tmp_path):
    content = io.BytesIO()
    torch.save(Gadget(tmp_path / "was-called"), content)
    (state / "__9_0.distcp").write_bytes(content.getvalue())

    def change(metadata):
        index = next(key for key in metadata.storage_data if key.fqn.endswith(".lr"))
        new = dataclasses.replace(
            metadata.storage_data[index], relative_path="__9_0.distcp", offset=0, length=len(content.getvalue())
        )
        metadata.storage_data[index] = new

    rewrite(state, change)
    with pytest.raises(UserError, match="cannot be read"):
        restore(saved, state)
    assert not (tmp_path / "was-called").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"relative_path": "../step-000001/__0_0.distcp"}, "names the file"),
        ({"relative_path": "/etc/hostname"}, "names the file"),
        ({"relative_path": "\x1b[2J"}, r"names the file '\\x1b"),
        ({"offset": -1}, "where a size or an offset was expected"),
        ({"offset": 10**15}, "holds more than it does"),
        ({"length": 10**30}, "where a size or an offset was expected"),
        ({"length": True}, "where a size or an offset was expected"),
        ({"transform_descriptors": ["zstd"]}, "asks for a transformation"),
    ],
)
def test_places_outside_of_the_state_are_refused(saved, state, values, told):
    def change(metadata):
        index, place = next(iter(metadata.storage_data.items()))
        metadata.storage_data[index] = dataclasses.replace(place, **values)

    rewrite(state, change)
    with pytest.raises(UserError, match=told):
        restore(saved, state)


def test_tensors_whose_parts_do_not_make_up_the_whole_are_refused(saved, state):
    def change(metadata):
        next(iter(metadata.state_dict_metadata.values())).chunks.clear()

    rewrite(state, change)
    with pytest.raises(UserError, match="parts do not make up the whole"):
        restore(saved, state)


def test_flipped_byte_of_a_tensor_is_told(saved, state):
    path = state / "__0_0.distcp"
    metadata = read_metadata(state)
    content = bytearray(path.read_bytes())
    largest = max(metadata.storage_data.values(), key=lambda place: place.length)
    content[largest.offset + largest.length // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"__0_0\.distcp, .* bytes from .*Bad CRC-32.*Delete that folder"):
        restore(saved, state)


@pytest.mark.fault("B6")
def test_any_flipped_byte_is_told(saved, whole):
    draw = random.Random(5)
    for name in (".metadata", "state.json", ".metadata"):
        content = (whole / name).read_bytes()
        for place in draw.sample(range(len(content) - 1), 12):
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(7)
            (whole / name).write_bytes(flipped)
            with pytest.raises(UserError, match="cannot be read|is not valid JSON|Delete that folder"):
                restore(saved, whole)
        (whole / name).write_bytes(content)
    assert restore(saved, whole) == RunState(1, 100, 0)


def test_changed_number_beside_the_tensors_is_told(saved, whole):
    values = json.loads((whole / "state.json").read_text())
    (whole / "state.json").write_text(json.dumps(values | {"tokens": 101}))
    with pytest.raises(UserError, match="checksum differs"):
        restore(saved, whole)


def test_state_of_an_older_version_has_no_checksums(saved, state):
    assert restore(saved, state) == RunState(1, 100, 0)


@pytest.mark.fault("C3")
def test_byte_order_mark_of_an_editor_is_taken(saved, state):
    (state / "state.json").write_text((state / "state.json").read_text(), encoding="utf-8-sig")
    before = everything(saved[0])
    assert restore(saved, state) == RunState(1, 100, 0)
    assert all(torch.equal(value, before[name]) for name, value in everything(saved[0]).items())


def test_metadata_of_any_bytes_are_read_or_refused(state):
    content = (state / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(content), (25,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
        (state / ".metadata").write_bytes(changed)
        try:
            read_metadata(state)
        except ValueError as error:
            assert ".metadata" in str(error)
        except FileNotFoundError as error:
            assert ".distcp" in str(error)


def test_sizes_that_a_pickle_claims_are_not_reserved(state):
    for content in (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50), b"\x80\x04\x96" + struct.pack("<Q", 1 << 50)):
        (state / ".metadata").write_bytes(content + b"x.")
        with pytest.raises(ValueError, match=r"\.metadata is damaged"):
            read_metadata(state)


# Two seconds; with a copy of the stack at every mark, 2 TB would be moved.
@pytest.mark.timeout(120)
def test_marks_without_end_take_no_time(state):
    (state / ".metadata").write_bytes(b"\x80\x02" + b"N" * 500_000 + b"(t" * 500_000 + b".")
    with pytest.raises(ValueError, match="holds 'a tuple' where"):
        read_metadata(state)
