"""The decoder's threads and copy of the head, and generation in large ragged batches."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from scratch import enliven, picture, scratch_vlm

import cobra
from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.generation.decoder import Decoder, read_tokens, threads_for, transposed_head
from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.vlms import GenerationOptions

NEVER = -1
# Two best scores that are closer than this may change places by rounding.
TIE = 1e-4


def wide_llm(vocabulary=20_000):
    """A model whose head is large enough to be turned: 5 MB."""
    torch.manual_seed(0)
    return MambaLM(MambaConfig(64, 1, vocabulary)).eval().requires_grad_(False)


@torch.no_grad()
def test_the_transposed_head_gives_the_same_scores():
    llm = wide_llm()
    decoder, state = open_decoder(llm, MambaState.zeros(llm.config, 3, "cpu")), MambaState.zeros(llm.config, 3, "cpu")
    assert transposed_head(llm).shape == (64, 20_000) and transposed_head(llm).is_contiguous()
    for step in range(4):
        tokens = torch.tensor([step, 7, 19_999])
        torch.testing.assert_close(decoder.read(tokens), read_tokens(llm, tokens, state))
    torch.testing.assert_close(decoder.state["ssm"], state["ssm"])


@torch.no_grad()
def test_it_follows_the_weights_and_goes_with_the_model():
    llm = wide_llm()
    first = transposed_head(llm)
    assert transposed_head(llm) is first
    llm.lm_head.weight.mul_(2)
    assert torch.equal(transposed_head(llm), llm.lm_head.weight.t())
    llm.lm_head.weight.data = torch.randn(20_000, 64)
    assert torch.equal(transposed_head(llm), llm.lm_head.weight.t())
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None


def test_where_it_would_be_of_no_use():
    assert transposed_head(wide_llm(1_000)) is None
    assert transposed_head(wide_llm().requires_grad_()) is None
    assert transposed_head(wide_llm().to(torch.bfloat16)) is None
    with torch.inference_mode():
        assert transposed_head(wide_llm()) is None


@torch.no_grad()
def test_rows_leave_and_turn():
    llm = wide_llm(1_000)
    decoder = Decoder(llm, MambaState.zeros(llm.config, 3, "cpu"))
    decoder.read(torch.tensor([1, 2, 3]))
    before = decoder.state.clone()
    decoder.keep(torch.tensor([2, 0]))
    assert all(part.equal(before[name][:, [2, 0]]) for name, part in decoder.state.parts.items())


@pytest.fixture(scope="module")
def tiny():
    return cobra.load("cobra-tiny", device="cpu")


def uneven_prompts(vlm):
    """32 prompts of 1 to about 250 tokens, no two alike."""
    words = "one red circle left of a blue square, and two green stars above the cross in its bottom row ".split()
    texts = [" ".join((words * 5)[place : place + 1 + (place * 7) % 61]) for place in range(32)]
    prompts = [vlm.tokenize(text) for text in texts]
    assert len({tuple(prompt) for prompt in prompts}) == 32
    assert min(map(len, prompts)) <= 3 and max(map(len, prompts)) > 60 and len(set(map(len, prompts))) > 15
    return prompts


@pytest.mark.parametrize(("with_images", "sampled"), [(True, False), (False, False), (False, True)])
def test_32_uneven_prompts_are_answered_as_one_by_one(tiny, with_images, sampled, record_property):
    prompts = uneven_prompts(tiny)
    pixels = tiny.preprocess([picture(index) for index in range(32)]) if with_images else None
    fields = {"max_new_tokens": 16, "eos_token_id": NEVER}
    if sampled:
        fields |= {"do_sample": True, "temperature": 1.5, "top_p": 0.95}

    def options(rows):
        return GenerationOptions(**fields, seeds=list(rows) if sampled else None)

    together = tiny.generate_batch_ids(pixels, prompts, options(range(32)))
    ties = 0
    for row, prompt in enumerate(prompts):
        own = None if pixels is None else {name: value[row : row + 1] for name, value in pixels.items()}
        [alone] = tiny.generate_batch_ids(own, [prompt], options([row]))
        assert len(alone) == 16
        if alone != together[row]:
            place = next(place for place in range(16) if alone[place] != together[row][place])
            _, scores = tiny.prefill(own, [prompt + alone[:place]])
            best = scores[0].topk(2).values
            assert not sampled and best[0] - best[1] < TIE
            ties += 1
    record_property("ties", ties)
    assert ties <= 2
    assert len({tuple(ids) for ids in together}) > 8


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.fault("E15")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("width", "expected"), [(64, 1), (128, 1), (256, 2), (2560, 2)])
def test_small_models_take_one_thread_and_give_the_others_back(width, expected):
    with pytest.raises(ZeroDivisionError), threads_for(SimpleNamespace(config=SimpleNamespace(d_model=width))):
        assert torch.get_num_threads() == expected
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.fault("E15")
@pytest.mark.usefixtures("two_threads")
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
