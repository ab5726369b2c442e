"""Where a program waits for its GPU: nowhere before the next step is queued. the GPU is a device without numbers."""

from random import Random

import pytest
import torch
from scratch import enliven, scratch_vlm
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cobra.models.generation import decoder as decoder_module
from cobra.models.generation import generate, sampling
from cobra.models.generation.decoder import Decoder, read_rows
from cobra.models.generation.generate import generate_ids
from cobra.models.generation.options import GenerationOptions
from cobra.models.generation.sampling import choose, next_numbers
from cobra.models.mamba import MambaState, model
from cobra.util.torch_utils import Receipt, send

TEXTS = ["What is it?", "A", "Which of the many things is the red one on the left?", "Is it B or C?"]
DEVICE = torch.device("meta")


class NoWaits(TorchDispatchMode):
    """Fails where a number is read from the device, and counts what is sent there.

    Tensors without numbers fail by themselves where a size depends on numbers, as that of `nonzero`.
    """

    def __init__(self):
        super().__init__()
        self.sent = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            raise AssertionError("a number is read")
        if operation is torch.ops.aten._to_copy.default:
            target = kwargs.get("device") or args[0].device
            assert target.type == "meta" or args[0].device.type == "cpu", "numbers are copied back"
            self.sent += target.type != args[0].device.type
        return operation(*args, **kwargs)


@pytest.fixture
def llm(monkeypatch):
    """A model on a device whose tensors have no numbers: whatever would wait for some fails."""
    monkeypatch.setenv("COBRA_MAMBA_OP", "torch")
    with torch.no_grad():
        yield scratch_vlm().llm_backbone.llm.eval().to(DEVICE)


@pytest.fixture
def sent(monkeypatch):
    """What goes through `send`, which does not wait; see the test of it."""
    calls = []

    def counted(values, device, dtype=None):
        calls.append(values)
        return send(values, device, dtype)

    for module in (generate, decoder_module, sampling, model):
        monkeypatch.setattr(module, "send", counted)
    return calls


def test_the_watcher_sees_waits():
    numbers = torch.ones(3, device=DEVICE)
    for wait in (numbers.tolist, lambda: numbers.sum().item(), lambda: bool(numbers.any()), numbers.nonzero):
        with NoWaits(), pytest.raises((AssertionError, RuntimeError)):
            wait()
    with NoWaits() as watch:
        torch.ones(2).to(DEVICE)
    assert watch.sent == 1


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4]], [[1, 2], [3, 4]]])
def test_prompts_of_any_lengths_are_read_without_waiting(llm, sent, rows):
    state = MambaState.zeros(llm.config, 2, DEVICE)
    patches = torch.zeros(2, 3, llm.config.d_model, device=DEVICE)
    with NoWaits() as watch:
        assert read_rows(llm, rows, state, patches).device == DEVICE
    assert watch.sent == len(sent) > 1


@pytest.mark.parametrize("chosen", [{}, {"do_sample": True}, {"do_sample": True, "top_p": 0.9, "min_p": 0.05}])
def test_a_token_is_chosen_and_read_without_waiting(llm, sent, chosen):
    decoder = Decoder(llm, MambaState.zeros(llm.config, 2, DEVICE))
    scores = torch.zeros(2, llm.config.padded_vocab_size, device=DEVICE)
    with NoWaits() as watch:
        numbers = next_numbers([Random(1), Random(2)], DEVICE) if chosen else None
        tokens = choose(scores, GenerationOptions(**chosen), None, numbers)
        scores = decoder.settle(decoder.read(tokens), [1])
    assert scores.shape == (1, llm.config.padded_vocab_size)
    assert watch.sent == len(sent) == 1 + bool(chosen)


def test_what_is_sent_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch):
    pinned, copies = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten._to_copy.default:
                copies.append(kwargs["non_blocking"])
            return operation(*args, **(kwargs or {}))

    with FakeTensorMode(), Copies():
        assert send([1, 2], torch.device("cuda", 0)).device == torch.device("cuda", 0)
    assert len(pinned) == 1 and copies == [True]


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "temperature": 5.0, "seeds": [1, 2, 3, 4]}])
def test_the_next_step_is_queued_before_tokens_are_looked_at_and_answers_stay(monkeypatch, sampled):
    vlm, order = enliven(scratch_vlm()), []
    prompts = [vlm.tokenize(text) for text in TEXTS]
    options = GenerationOptions(max_length=40, **sampled)

    def write():
        state, scores = vlm.prefill(None, prompts)
        return list(
            generate_ids(vlm.llm_backbone.llm, state, scores, prompts, options, -1, lambda row, token: row == 1)
        )

    class AheadDecoder(Decoder):
        def __init__(self, llm, state):
            super().__init__(llm, state)
            self.reads_ahead = True

        def read(self, tokens):
            order.append("queued")
            return super().read(tokens)

    class Noted(Receipt):
        def read(self):
            order.append("looked at")
            return super().read()

    expected = write()
    monkeypatch.setattr(generate, "open_decoder", AheadDecoder)
    monkeypatch.setattr(generate, "Receipt", Noted)
    assert write() == expected and len({len(step) for step in expected}) > 1
    # After the last token of all nothing is read.
    assert order == ["queued", "looked at"] * (len(expected) - 1) + ["looked at"]


def test_numbers_are_sent_as_they_are():
    cpu = torch.device("cpu")
    assert torch.equal(send([1, 2], cpu), torch.tensor([1, 2]))
    assert send(torch.tensor([1, 2]), cpu, torch.float32).dtype == torch.float32
    assert Receipt(torch.tensor([[1, 2]])).read() == [[1, 2]]
