"""Threads that answers are written on: small models take one, whatever PyTorch has."""

from types import SimpleNamespace

import pytest
import torch
from scratch import enliven, picture, scratch_vlm

from cobra.models.generation.decoder import threads_for
from cobra.models.mamba import MambaState

pytestmark = pytest.mark.fault("E15")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "expected"), [(64, 1), (128, 1), (256, 2), (2560, 2)])
def test_small_models_take_one_thread_and_give_the_others_back(width, expected):
    with pytest.raises(ZeroDivisionError), threads_for(SimpleNamespace(config=SimpleNamespace(d_model=width))):
        assert torch.get_num_threads() == expected
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_every_way_of_answering_works_on_one_thread(monkeypatch):
    vlm = enliven(scratch_vlm())
    seen, llm, encode = [], vlm.llm_backbone.llm, vlm.encode_images
    llm.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(vlm, "encode_images", lambda pixels: seen.append(torch.get_num_threads()) or encode(pixels))
    # States too: a thread that helped with one spins for milliseconds on a core that others want.
    for name in ("zeros", "clone"):
        whole = getattr(MambaState, name)
        monkeypatch.setattr(
            MambaState, name, lambda *args, whole=whole: seen.append(torch.get_num_threads()) or whole(*args)
        )
    vlm.generate(picture(1), "What?", max_new_tokens=4)
    pieces = vlm.stream(picture(1), "What?", max_new_tokens=4)
    next(pieces)
    # Between two pieces the caller has its own.
    assert torch.get_num_threads() == 2
    list(pieces)
    prefix = vlm.read_images(vlm.preprocess([picture(1)]))
    vlm.prefill(None, [[1, 2]], prefix)
    assert set(seen) == {1} and len(seen) > 13 and torch.get_num_threads() == 2
