"""The engine: requests come and go, and each is answered as if it were alone."""

import random
import threading
import time
from concurrent.futures import wait

import pytest
import torch
from scratch import enliven, picture, scratch_vlm

from cobra.models.mamba import MambaState
from cobra.models.vlms import GenerationOptions, as_turn
from cobra.serving.batch import Batch
from cobra.serving.engine import Engine
from cobra.serving.jobs import BusyError, CancelledError, Job, Prompt, Solo, StopTexts
from cobra.serving.reading import POSITIONS
from cobra.util.errors import UserError

WORDS = "red green blue circle square what is in the picture how many shapes".split()
NEVER = -1
GREEDY = GenerationOptions(max_new_tokens=24, eos_token_id=NEVER)
SAMPLED = GenerationOptions(max_new_tokens=24, do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.2)
LONG = GenerationOptions(max_new_tokens=400, eos_token_id=NEVER)
FEW = GenerationOptions(max_new_tokens=9, do_sample=True, top_k=5, min_p=0.05)


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm(llm_max_length=1024))


@pytest.fixture
def engine(vlm):
    started = Engine(vlm)
    yield started
    started.close()


class Waiting:
    """A job that can be waited for."""

    def __init__(self, engine, job):
        self.job, self._done = job, threading.Event()
        job.wake = lambda: self._done.set() if job.ended else None
        engine.submit(job)

    def text(self, answer=0):
        assert self._done.wait(100)
        if self.job.error is not None:
            raise self.job.error
        return self.job.answers[answer].text


def request(vlm, seed):
    """A prompt of 1 to 700 tokens, with an image or without, and options."""
    chance = random.Random(seed)
    text = as_turn(vlm, " ".join(chance.choice(WORDS) for _ in range(chance.choice((1, 5, 40, 150, 500)))))
    image = picture(seed) if chance.random() < 0.5 else None
    return text, image, chance.choice((GREEDY, SAMPLED, FEW))


def alone(vlm, text, image, options, seed=0):
    fields = {name: value for name, value in vars(options).items() if name != "stop_strings"}
    return vlm.generate(image, text, **fields | ({"seeds": [seed]} if options.do_sample else {}))


def job(vlm, text, image=None, options=GREEDY, seed=0, **fields):
    pixels = None if image is None else vlm.preprocess([image])
    return Job(lambda: Prompt(vlm.encode(text), pixels), options, seed, **fields)


def test_requests_of_any_length_get_the_answers_that_they_get_alone(vlm, engine):
    requests = [request(vlm, seed) for seed in range(24)]
    assert max(len(vlm.encode(text)) for text, *_ in requests) > POSITIONS
    chance, waiting = random.Random(1), []
    for seed, (text, image, options) in enumerate(requests):
        waiting.append(Waiting(engine, job(vlm, text, image, options, seed)))
        time.sleep(chance.random() * 0.01)
    texts = [each.text().strip() for each in waiting]
    assert texts == [alone(vlm, *each, seed) for seed, each in enumerate(requests)]
    assert len(set(texts)) > 20


def test_several_answers_to_one_prompt_read_it_once(vlm, engine):
    text, image = as_turn(vlm, "What?"), picture(3)
    encoded = []
    vlm.encode_images, encode = lambda pixels: encoded.append(1) or encode(pixels), vlm.encode_images
    several = Waiting(engine, job(vlm, text, image, SAMPLED, 5, count=3))
    assert [several.text(number).strip() for number in range(3)] == [
        alone(vlm, text, image, SAMPLED, 5 + number) for number in range(3)
    ]
    vlm.encode_images = encode
    assert encoded == [1] * 4


def test_an_answer_ends_at_its_limit_its_end_token_and_before_its_stop_text(vlm, engine):
    text = as_turn(vlm, "What?")
    whole = alone(vlm, text, None, GREEDY)
    limited = Waiting(engine, job(vlm, text))
    assert limited.text().strip() == whole and limited.job.answers[0].finish_reason == "length"
    assert limited.job.answers[0].written == 24
    [third] = vlm.generate_batch_ids(None, [vlm.encode(text)], GREEDY)[0][2:3]
    ended = Waiting(engine, job(vlm, text, options=GenerationOptions(eos_token_id=third)))
    ended.text()
    assert (ended.job.answers[0].finish_reason, ended.job.answers[0].written) == ("stop", 3)
    raw = limited.text()
    stop = raw[len(raw) // 2 :][:3]
    stopped = Waiting(engine, job(vlm, text, stops=[stop, "never written"]))
    assert stopped.text() == raw[: raw.index(stop)] and stopped.job.answers[0].finish_reason == "stop"


@pytest.mark.parametrize("pieces", [["abcab", "d"], ["ab", "ca", "bd"], list("abcabd")])
def test_stop_texts_are_found_across_pieces(pieces):
    stops = StopTexts(["abd", "zz"])
    assert [stops.feed(piece) for piece in pieces][-1][1]
    stops = StopTexts(["abd", "zz"])
    assert "".join(stops.feed(piece)[0] for piece in pieces) == "abc"
    stops = StopTexts(["abx", "zz"])
    assert "".join(stops.feed(piece)[0] for piece in pieces) + stops.finish() == "abcabd"


def test_who_leaves_is_no_longer_written_for(vlm, engine):
    ended = []
    leaving = job(vlm, as_turn(vlm, "What?"), options=GenerationOptions(max_new_tokens=10**9, eos_token_id=NEVER))
    leaving.on_end = lambda: ended.append(leaving.answers[0].written)
    waiting = Waiting(engine, leaving)
    staying = [Waiting(engine, job(vlm, as_turn(vlm, word))) for word in WORDS]
    while not leaving.answers[0].written:
        time.sleep(0.001)
    engine.cancel(leaving)
    engine.cancel(leaving)
    with pytest.raises(CancelledError):
        waiting.text()
    assert [each.text().strip() for each in staying] == [alone(vlm, as_turn(vlm, word), None, GREEDY) for word in WORDS]
    assert ended == [leaving.answers[0].written]
    engine.cancel(staying[0].job)


def test_who_leaves_while_waiting_or_being_read_is_forgotten(vlm, monkeypatch):
    engine = Engine(vlm, max_rows=1)
    long = job(vlm, as_turn(vlm, "long"), options=GenerationOptions(max_new_tokens=10**9, eos_token_id=NEVER))
    first = Waiting(engine, long)
    second, third = (Waiting(engine, job(vlm, as_turn(vlm, word))) for word in ("two", "three"))
    engine.cancel(second.job)
    with pytest.raises(CancelledError):
        second.text()
    assert not third.job.ended
    engine.cancel(first.job)
    assert third.text().strip() == alone(vlm, as_turn(vlm, "three"), None, GREEDY)
    engine.close()


def test_no_more_wait_than_may(vlm):
    engine = Engine(vlm, max_rows=1, max_waiting=2)
    endless = GenerationOptions(max_new_tokens=10**9, eos_token_id=NEVER)
    running = job(vlm, as_turn(vlm, "one"), options=endless)
    engine.submit(running)
    while not running.answers[0].written:
        time.sleep(0.001)
    waiting = [job(vlm, as_turn(vlm, "two"), options=endless) for _ in range(2)]
    for each in waiting:
        engine.submit(each)
    with pytest.raises(BusyError, match="2 requests wait already") as raised:
        engine.submit(job(vlm, as_turn(vlm, "three")))
    assert 1 <= raised.value.seconds <= 60
    engine.cancel(waiting[0])
    wait([engine.call(lambda: None)])
    last = Waiting(engine, job(vlm, as_turn(vlm, "three")))
    engine.close()
    assert all(each.ended for each in (running, *waiting, last.job))
    with pytest.raises(CancelledError):
        engine.submit(job(vlm, as_turn(vlm, "four")))


def test_a_failure_ends_its_own_request_and_the_next_is_answered(vlm, engine, monkeypatch):
    def refuse():
        raise UserError("too long")

    expected = alone(vlm, as_turn(vlm, "What?"), None, GREEDY)
    with pytest.raises(UserError, match="too long"):
        Waiting(engine, Job(refuse, GREEDY)).text()
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "encode_images", lambda pixels: torch.empty(1 << 62))
        with pytest.raises(RuntimeError):
            Waiting(engine, job(vlm, as_turn(vlm, "What?"), picture(1))).text()
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "read", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Waiting(engine, job(vlm, as_turn(vlm, "What?"))).text()
    assert Waiting(engine, job(vlm, as_turn(vlm, "What?"))).text().strip() == expected


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


class Writing:
    """An answer that is being written, with the engine held between two steps until :meth:`go_on`."""

    def __init__(self, vlm, engine, text):
        self.waiting = Waiting(engine, job(vlm, as_turn(vlm, text), options=LONG))
        while not self.waiting.job.answers[0].written:
            time.sleep(0.001)
        self._go_on = threading.Event()
        self._held = engine.call(lambda: self._go_on.wait(60))

    def go_on(self):
        self._go_on.set()
        wait([self._held])


@pytest.mark.parametrize("failing", [(MambaState, "select"), (MambaState, "join"), (torch, "cat")])
def test_prompts_that_memory_has_no_room_for_end_alone(vlm, engine, monkeypatch, failing):
    expected = alone(vlm, as_turn(vlm, "one"), None, LONG)
    writing = Writing(vlm, engine, "one")
    join = Batch.join

    def join_without_memory(batch, arrivals):
        with monkeypatch.context() as patch:
            if arrivals:
                patch.setattr(*failing, out_of_memory)
            join(batch, arrivals)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "join", join_without_memory)
        arriving = [Waiting(engine, job(vlm, as_turn(vlm, word))) for word in ("two", "three")]
        writing.go_on()
        for each in arriving:
            with pytest.raises(torch.OutOfMemoryError):
                each.text()
    assert writing.waiting.text().strip() == expected
    assert Waiting(engine, job(vlm, as_turn(vlm, "four"))).text() and not engine._unread


def test_a_row_that_cannot_be_taken_out_ends_those_beside_it_and_the_next_is_answered(vlm, engine, monkeypatch):
    writing = Writing(vlm, engine, "one")
    leaving = Waiting(engine, job(vlm, as_turn(vlm, "two"), options=LONG))
    writing.go_on()
    while not leaving.job.answers[0].written:
        time.sleep(0.001)
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "drop", out_of_memory)
        engine.cancel(leaving.job)
        with pytest.raises(CancelledError):
            leaving.text()
        with pytest.raises(torch.OutOfMemoryError):
            writing.waiting.text()
    assert Waiting(engine, job(vlm, as_turn(vlm, "three"))).text()


def test_what_fails_at_the_end_of_a_request_is_told_to_it_alone(vlm, engine):
    failing = job(vlm, as_turn(vlm, "What?"), on_end=lambda: 1 / 0)
    beside = Waiting(engine, job(vlm, as_turn(vlm, "What?")))
    with pytest.raises(ZeroDivisionError):
        Waiting(engine, failing).text()
    assert beside.text().strip() == alone(vlm, as_turn(vlm, "What?"), None, GREEDY)
    refused = Job(lambda: 1 / 0, GREEDY, on_end=lambda: int("no"))
    with pytest.raises(ZeroDivisionError):
        Waiting(engine, refused).text()
    assert Waiting(engine, job(vlm, as_turn(vlm, "What?"))).text()


def test_who_no_longer_waits_for_a_call_does_not_stop_the_engine(vlm, engine):
    go_on, called = threading.Event(), []
    engine.call(lambda: go_on.wait(60))
    assert engine.call(lambda: called.append(1)).cancel()
    go_on.set()
    assert engine.jobs() == called == []


def test_an_engine_that_fails_ends_every_request_and_takes_no_more(vlm, monkeypatch):
    engine = Engine(vlm, max_rows=1)
    writing = Writing(vlm, engine, "one")
    reading, solo = Waiting(engine, job(vlm, as_turn(vlm, "two"))), Waiting(engine, Solo(lambda between: iter(())))
    monkeypatch.setattr(Engine, "_turn", lambda self: 1 / 0)
    writing.go_on()
    for each in (writing.waiting, reading, solo):
        with pytest.raises(ZeroDivisionError):
            each.text()
    with pytest.raises(CancelledError):
        engine.submit(job(vlm, as_turn(vlm, "three")))
    engine.close()


def test_nothing_is_asked_of_an_engine_that_has_ended(vlm):
    """At whichever moment another thread closes it."""
    engine = Engine(vlm)
    ended = job(vlm, as_turn(vlm, "one"))
    engine.close()
    for ask in (lambda: engine.call(lambda: None), engine.jobs, lambda: engine.submit(ended)):
        with pytest.raises(CancelledError):
            ask()
    engine.cancel(ended)
    for pause in (0, 0.0002, 0.001, 0.003):
        engine, asked, going = Engine(vlm), [], threading.Event()

        def ask_on(engine=engine, asked=asked, going=going):
            with pytest.raises(CancelledError):
                while True:
                    asked.append(engine.call(lambda: None))
                    going.set()

        asking = threading.Thread(target=ask_on)
        asking.start()
        going.wait()
        time.sleep(pause)
        engine.close()
        asking.join(60)
        assert not asking.is_alive() and wait(asked, timeout=60).not_done == set()


def test_a_request_that_samples_strangely_disturbs_nobody(vlm, engine):
    """Its parameters, or scores of its own that are no numbers."""
    expected = alone(vlm, as_turn(vlm, "What?"), None, SAMPLED, 3)
    strange = [{"temperature": 1e-40}, {"temperature": 5e-324, "top_p": 0.9}, {"repetition_penalty": 1e-40}]
    options = [GenerationOptions(max_new_tokens=24, do_sample=True, **fields) for fields in strange]
    others = [Waiting(engine, job(vlm, as_turn(vlm, "What?"), options=each)) for each in options]
    lost = Waiting(engine, without_numbers(vlm, options=SAMPLED))
    own = Waiting(engine, job(vlm, as_turn(vlm, "What?"), options=SAMPLED, seed=3))
    assert own.text().strip() == expected
    assert others[0].text().strip() == alone(vlm, as_turn(vlm, "What?"), None, GenerationOptions(max_new_tokens=24))
    for each in (*others, lost):
        each.text()
        assert each.job.answers[0].finish_reason


def without_numbers(vlm, **fields):
    """A job whose state, and with it every score, is NaN."""
    config = vlm.llm_backbone.llm.config
    state = MambaState.zeros(config, 1, vlm.device)
    for part in state.parts.values():
        part.fill_(torch.nan)
    return Job(lambda: Prompt(vlm.encode(as_turn(vlm, "What?")), prefix=state), **fields)


def test_answers_go_on_beside_work_that_takes_the_engine_for_itself(vlm, engine):
    go_on, steps = threading.Event(), []

    def pieces(between_steps):
        yield "begun"
        while not go_on.is_set():
            between_steps()
            steps.append(1)
        yield " and done"

    solo = Waiting(engine, Solo(pieces))
    answered = Waiting(engine, job(vlm, as_turn(vlm, "What?")))
    assert answered.text().strip() == alone(vlm, as_turn(vlm, "What?"), None, GREEDY)
    assert not solo.job.ended and len(steps) >= 24
    second = Waiting(engine, Solo(pieces))
    engine.cancel(second.job)
    with pytest.raises(CancelledError):
        second.text()
    go_on.set()
    assert solo.text() == "begun and done"
    go_on.clear()
    third = Waiting(engine, Solo(pieces))
    engine.cancel(third.job)
    with pytest.raises(CancelledError):
        third.text()


def test_a_long_prompt_is_read_between_the_steps_of_others(vlm, engine):
    """Part by part, so that the others wait for a part at a time."""
    running = job(vlm, as_turn(vlm, "one"), options=GenerationOptions(max_new_tokens=10**9, eos_token_id=NEVER))
    engine.submit(running)
    lengths, forward = [], vlm.llm_backbone.llm.forward
    vlm.llm_backbone.llm.forward = lambda embeds, *rest: lengths.append(embeds.shape[:2]) or forward(embeds, *rest)
    text = as_turn(vlm, "red " * 4 * POSITIONS)
    try:
        Waiting(engine, job(vlm, text)).text()
    finally:
        del vlm.llm_backbone.llm.forward
    engine.cancel(running)
    parts = [place for place, (_, length) in enumerate(lengths) if length > 1]
    assert len(parts) >= 4 and max(length for _, length in lengths) == POSITIONS
    assert all(later - earlier > 1 for earlier, later in zip(parts, parts[1:], strict=False))
