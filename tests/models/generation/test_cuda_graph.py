"""The decode step as a captured graph, against the plain one: buffers, buckets, and rows that leave."""

import gc
import logging
import weakref

import pytest
import torch
from graph_standin import install
from scratch import enliven, scratch_vlm, search_options

from cobra.models.generation import cuda_graph as graph
from cobra.models.generation.cuda_graph import BUCKETS, CapturedStep, GraphDecoder, bucket_of, can_capture, open_decoder
from cobra.models.generation.decoder import Decoder, read_tokens
from cobra.models.mamba import MambaState
from cobra.models.vlms import GenerationOptions

TEXTS = [
    "What is it?",
    "A",
    "Which of the many things in the picture is the red one on the left?",
    "Is it B or C?",
    "a red",
]


@pytest.fixture(autouse=True)
def _operations_of_torch(monkeypatch):
    """The stand-in records these, and does not see loops that numba compiled."""
    monkeypatch.setenv("COBRA_MAMBA_OP", "torch")


@pytest.fixture
def vlm():
    return enliven(scratch_vlm())


@pytest.fixture
def llm(vlm):
    return vlm.llm_backbone.llm


@pytest.fixture
def captured(monkeypatch):
    """Graphs are captured on the CPU; the class of the stand-in counts them."""
    monkeypatch.setattr("cobra.models.generation.generate.open_decoder", decoder_for)
    return install(monkeypatch)


def decoder_for(llm, state):
    return GraphDecoder(llm, state) if can_capture(llm) else Decoder(llm, state)


def random_state(llm, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = MambaState.zeros(llm.config, rows, "cpu")
    return MambaState({name: torch.randn(part.shape, generator=generator) for name, part in state.parts.items()})


def test_buckets():
    assert [bucket_of(rows) for rows in (1, 2, 3, 4, 5, 32, 33, 64, 65, 999)] == [1, 2, 4, 4, 8, 32, 64, 64, None, None]
    assert sorted(BUCKETS) == list(BUCKETS)


@torch.no_grad()
def test_a_captured_step_has_buffers_of_its_bucket(llm, captured):
    step = CapturedStep(llm, 4, torch.device("cpu"))
    own = MambaState.zeros(llm.config, 4, "cpu")
    assert step.tokens.shape == (4,) and step.tokens.dtype == torch.int64
    assert (step.state["conv"].shape, step.state["ssm"].shape) == (own["conv"].shape, own["ssm"].shape)
    assert step.scores.shape == (4, llm.config.padded_vocab_size) and step.scores.dtype == torch.float32
    pointers = [tensor.data_ptr() for tensor in (step.tokens, *step.state.parts.values(), step.scores)]
    for seed in range(3):
        state = random_state(llm, 4, seed)
        tokens = torch.tensor([5, 6, 7, 8 + seed])
        step.state["conv"].copy_(state["conv"])
        step.state["ssm"].copy_(state["ssm"])
        step.tokens.copy_(tokens)
        step.replay()
        expected = read_tokens(llm, tokens, state)
        torch.testing.assert_close(step.scores, expected)
        torch.testing.assert_close(step.state["ssm"], state["ssm"])
        torch.testing.assert_close(step.state["conv"], state["conv"])
    assert pointers == [tensor.data_ptr() for tensor in (step.tokens, *step.state.parts.values(), step.scores)]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_the_decoder_is_the_plain_one_while_rows_leave(llm, captured, rows):
    plain, decoder = Decoder(llm, random_state(llm, rows)), decoder_for(llm, random_state(llm, rows))
    assert isinstance(decoder, GraphDecoder)
    for step in range(rows * 2):
        tokens = torch.arange(plain.state.batch_size) + step
        torch.testing.assert_close(decoder.read(tokens), plain.read(tokens))
        if step % 2 and plain.state.batch_size > 1:
            # The last row comes first, and the first one leaves.
            keep = torch.arange(plain.state.batch_size - 1, 0, -1)
            plain.keep(keep)
            decoder.keep(keep)
        assert decoder.state.batch_size == plain.state.batch_size
        torch.testing.assert_close(decoder.state["ssm"], plain.state["ssm"])
        torch.testing.assert_close(decoder.state["conv"], plain.state["conv"])
    decoder.close()
    assert captured.made == len({bucket_of(count) for count in range(1, rows + 1)})


@torch.no_grad()
def test_what_is_left_in_a_buffer_reaches_no_other_row(llm, captured):
    decoder = decoder_for(llm, random_state(llm, 4))
    decoder._step.state["ssm"].fill_(float("nan"))
    decoder.close()
    decoder, plain = decoder_for(llm, random_state(llm, 3)), Decoder(llm, random_state(llm, 3))
    tokens = torch.tensor([1, 2, 3])
    torch.testing.assert_close(decoder.read(tokens), plain.read(tokens))
    assert captured.made == 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 5.0, "seeds": [1, 2, 3, 4, 5]}])
def test_answers_are_the_plain_ones(vlm, monkeypatch, options):
    prompts = [vlm.tokenize(text) for text in TEXTS]
    options = GenerationOptions(max_length=50, eos_token_id=-1, **options)
    expected = vlm.generate_batch_ids(None, prompts, options)
    assert len({len(ids) for ids in expected}) == 5
    monkeypatch.setattr("cobra.models.generation.generate.open_decoder", decoder_for)
    captured = install(monkeypatch)
    assert vlm.generate_batch_ids(None, prompts, options) == expected
    assert captured.made == 4 and captured.replays > 40
    # The next answers are written by the same graphs.
    assert vlm.generate_batch_ids(None, prompts, options) == expected
    assert captured.made == 4


def test_a_search_by_graphs_finds_the_same(vlm, monkeypatch):
    options = search_options("stage-beam", beams=3, keep=2, max_new_tokens=160, stage_tokens=12, temperature=2.0)
    expected = vlm.search_batch(None, TEXTS[:2], options, seeds=[1, 2])
    monkeypatch.setattr("cobra.models.generation.generate.open_decoder", decoder_for)
    captured = install(monkeypatch)
    found = vlm.search_batch(None, TEXTS[:2], options, seeds=[1, 2])
    assert [result.text for result in found] == [result.text for result in expected]
    assert captured.made >= 1 and captured.replays > 40


@torch.no_grad()
def test_two_decoders_at_once_have_graphs_of_their_own(llm, captured):
    states = [random_state(llm, 2, seed) for seed in range(2)]
    decoders = [decoder_for(llm, state.clone()) for state in states]
    plain = [Decoder(llm, state) for state in states]
    for step in range(3):
        tokens = torch.tensor([step, step + 1])
        for one, other in zip(decoders, plain, strict=True):
            torch.testing.assert_close(one.read(tokens), other.read(tokens))
    assert captured.made == 2


def test_a_stream_that_is_left_gives_its_graph_back(vlm, captured):
    for _ in range(3):
        stream = vlm.stream(None, "A", max_new_tokens=20, eos_token_id=-1)
        next(stream)
        next(stream)
        stream.close()
    assert captured.made == 1


@torch.no_grad()
def test_more_rows_than_the_last_bucket_are_read_plainly_until_they_fit(llm, captured, monkeypatch):
    monkeypatch.setattr(graph, "BUCKETS", (1, 2))
    decoder, plain = decoder_for(llm, random_state(llm, 4)), Decoder(llm, random_state(llm, 4))
    for keep in ([0, 1, 2, 3], [0, 2, 3], [1, 2], [1]):
        for one in (decoder, plain):
            one.keep(torch.tensor(keep))
        tokens = torch.arange(len(keep))
        torch.testing.assert_close(decoder.read(tokens), plain.read(tokens))
        assert captured.made == {4: 0, 3: 0, 2: 1, 1: 2}[len(keep)]


@torch.no_grad()
def test_weights_that_moved_are_captured_anew(llm, captured):
    decoder_for(llm, random_state(llm, 1)).close()
    decoder_for(llm, random_state(llm, 1)).close()
    assert captured.made == 1
    llm.backbone.norm_f.weight.mul_(2)
    decoder = decoder_for(llm, random_state(llm, 1))
    assert captured.made == 1
    # Values that changed in place are read where they are.
    torch.testing.assert_close(
        decoder.read(torch.tensor([3])), Decoder(llm, random_state(llm, 1)).read(torch.tensor([3]))
    )
    decoder.close()
    llm.backbone.norm_f.weight = torch.nn.Parameter(llm.backbone.norm_f.weight * 3)
    decoder = decoder_for(llm, random_state(llm, 1))
    assert captured.made == 2
    torch.testing.assert_close(
        decoder.read(torch.tensor([3])), Decoder(llm, random_state(llm, 1)).read(torch.tensor([3]))
    )


@torch.no_grad()
def test_a_graph_of_weights_that_moved_while_it_was_lent_is_not_lent_again(llm, captured):
    lent = decoder_for(llm, random_state(llm, 1))
    llm.backbone.norm_f.weight = torch.nn.Parameter(llm.backbone.norm_f.weight * 3)
    assert can_capture(llm)
    lent.close()
    decoder = decoder_for(llm, random_state(llm, 1))
    torch.testing.assert_close(
        decoder.read(torch.tensor([3])), Decoder(llm, random_state(llm, 1)).read(torch.tensor([3]))
    )


@torch.no_grad()
def test_other_operations_are_captured_anew(llm, captured, monkeypatch):
    decoder_for(llm, random_state(llm, 1)).close()
    monkeypatch.setattr(graph, "ops_for", lambda device: graph)
    decoder_for(llm, random_state(llm, 1)).close()
    assert captured.made == 2


def test_a_graph_captured_in_inference_mode_is_used_outside(vlm, captured):
    answers = []
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            answers.append(vlm.generate_batch(None, TEXTS, max_new_tokens=6))
    assert answers[0] == answers[1] == answers[2]
    assert captured.made == 1 and captured.replays == 3 * 5


def test_when_nothing_is_captured(llm, captured, monkeypatch):
    assert can_capture(llm)
    llm.train()
    assert not can_capture(llm)
    llm.eval()
    monkeypatch.setenv("COBRA_CUDA_GRAPH", "0")
    assert not can_capture(llm)
    monkeypatch.undo()
    assert can_capture(llm)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert not can_capture(llm)


@torch.no_grad()
def test_a_step_that_cannot_be_captured_is_run_plainly(llm, captured, monkeypatch, caplog):
    """For instance one that reads a value out of a tensor in between."""
    forward = llm.forward

    def looks(embeds, state):
        return forward(embeds, state) * float(embeds.sum().item() * 0 + 1)

    monkeypatch.setattr(llm, "forward", looks)
    tokens = torch.tensor([1, 2])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            decoder = decoder_for(llm, random_state(llm, 2))
            torch.testing.assert_close(decoder.read(tokens), Decoder(llm, random_state(llm, 2)).read(tokens))
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "The decode step cannot be captured as a CUDA graph"
    ]


def test_graphs_go_with_their_model(captured):
    llm = scratch_vlm().llm_backbone.llm
    decoder_for(llm, random_state(llm, 1)).close()
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None


def test_on_a_cpu_nothing_is_captured(llm):
    decoder = open_decoder(llm, random_state(llm, 1))
    assert type(decoder) is Decoder


@torch.no_grad()
def test_graphs_are_captured_on_the_models_device_for_this_thread_and_share_a_pool(llm, captured):
    decoder = decoder_for(llm, random_state(llm, 4))
    decoder.keep(torch.tensor([0]))
    decoder.close()
    assert [made.device for made in captured.all] == [torch.device("cpu")] * 2
    assert {made.mode for made in captured.all} == {"thread_local"}
    assert captured.all[0].pool is captured.all[1].pool is not None
    assert captured.devices == ["current"]


@torch.no_grad()
def test_a_capture_that_was_broken_once_is_tried_again(llm, captured, monkeypatch, caplog):
    broken = iter([True])
    usual = torch.cuda.graph

    def break_once(*args, **kwargs):
        if next(broken, False):
            raise RuntimeError("operation failed due to a previous error during capture")
        return usual(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "graph", break_once)
    decoder, plain = decoder_for(llm, random_state(llm, 2)), Decoder(llm, random_state(llm, 2))
    tokens = torch.tensor([1, 2])
    torch.testing.assert_close(decoder.read(tokens), plain.read(tokens))
    assert captured.replays == 1 and not caplog.records


@torch.no_grad()
@pytest.mark.parametrize("failing", [(MambaState, "join"), (graph, "CapturedStep")])
def test_rows_that_cannot_join_leave_the_others_as_they_were(llm, captured, monkeypatch, failing):
    """Not for want of memory, and not where a kernel cannot be compiled for the larger bucket."""
    decoder, plain = decoder_for(llm, random_state(llm, 1)), Decoder(llm, random_state(llm, 1))
    with monkeypatch.context() as patch:
        patch.setattr(*failing, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.join(random_state(llm, 2))
    for token in (torch.tensor([1]), torch.tensor([2])):
        torch.testing.assert_close(decoder.read(token), plain.read(token))
    assert captured.replays == 2
