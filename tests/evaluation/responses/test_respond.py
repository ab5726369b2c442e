"""How a model's variants are answered: passes, batches, resuming, bad images, several processes."""

import io
import json
from dataclasses import replace

import pytest
import torch
from fake_vlm import FakeVLM
from PIL import Image
from processes import together
from rich.console import Console
from scratch import enliven, picture, scratch_vlm

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import PictureFolder
from cobra.evaluation.responses import batch_generation as passes
from cobra.evaluation.responses.protocol import (
    ANALYSIS_PROMPT,
    DEFAULT_PROMPT,
    SCRATCHPAD_TOKENS,
    Protocol,
    second_prompt,
)
from cobra.evaluation.responses.respond import WINDOW_BATCHES, answer_variants
from cobra.models.vlms import as_turn
from cobra.util.distributed import World
from cobra.util.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))
QUIET = Console(file=io.StringIO())


@pytest.fixture
def ask(captions, tmp_path):
    """Let a model answer about the captioned images, or others; what was printed is in `ask.printed`."""

    def call(vlm, own_stages=False, images=None, **changes):
        console = Console(file=io.StringIO(), width=200)
        images = captions.images if images is None else images
        pictures, store = PictureFolder(captions.image_dir), tmp_path / "answers"
        protocol = Protocol(**changes)
        answered = answer_variants(vlm, "it", images, pictures, protocol, store, own_stages, ALONE, console)
        call.printed = console.file.getvalue()
        return answered

    call.captions = captions
    return call


def lines(tmp_path):
    """The stored lines of all files."""
    return [line for path in sorted((tmp_path / "answers").glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_stock_model_is_asked_for_an_analysis(ask, captions):
    vlm = FakeVLM("stock")
    answered = ask(vlm, batch_size=4)
    assert list(answered.answers) == ["it", "it+scratchpad"]
    direct, scratchpad = answered.answers.values()
    for answers in (direct, scratchpad):
        assert [answer.image_id for answer in answers] == [image.image_id for image in captions.images]
    assert (direct[1].prompt, direct[1].raw, direct[1].analysis) == (DEFAULT_PROMPT, "a green square", None)
    assert scratchpad[1].analysis == "I see green."
    assert scratchpad[1].prompt == f"An analysis of the image:\nI see green.\n\n{DEFAULT_PROMPT}"
    assert scratchpad[1].raw == scratchpad[1].scored == "a green square on a wall"
    assert not scratchpad[1].valid_structure


def test_a_fine_tuned_model_uses_its_own_stages_and_ends_before_its_conclusion(ask):
    vlm = FakeVLM("tuned", staged=True)
    direct, scratchpad = ask(vlm, own_stages=True, prompt="Caption?", max_new_tokens=64).answers.values()
    assert direct[2].raw.endswith("<CONCLUSION> a blue square </CONCLUSION>")
    assert (direct[2].scored, direct[2].source) == ("a blue square", "conclusion")
    assert scratchpad[2].analysis.endswith("<REASONING> r </REASONING>")
    assert scratchpad[2].prompt == "An analysis of the image:\ns blue\nc\nr\n\nCaption?"
    assert ANALYSIS_PROMPT not in scratchpad[2].prompt
    assert (scratchpad[2].scored, scratchpad[2].source, scratchpad[2].valid_structure) == (
        "a blue square on a wall",
        "conclusion",
        True,
    )
    assert vlm.calls == [(6, 64), (6, SCRATCHPAD_TOKENS), (6, 64)]


def test_images_are_read_once_for_all_passes_window_by_window(ask, captions):
    vlm = FakeVLM("stock")
    images = [replace(captions.images[number % 6], image_id=number) for number in range(11)]
    answers = ask(vlm, images=images, batch_size=2).answers
    # Eight images in batches of two, then three; of each window the direct answers and both passes of the scratchpad.
    assert vlm.reads == [2] * WINDOW_BATCHES + [2, 1]
    direct, first = 512, SCRATCHPAD_TOKENS
    assert vlm.calls == [
        *[(2, limit) for limit in (direct, first, direct) for _ in range(WINDOW_BATCHES)],
        *[(size, limit) for limit in (direct, first, direct) for size in (2, 1)],
    ]
    assert [answer.raw for answer in answers["it"]] == [
        f"a {'red green blue'.split()[n % 3]} square" for n in range(11)
    ]


def test_prompts_of_like_length_are_read_together_and_answers_come_in_the_images_order(ask, captions, monkeypatch):
    vlm = FakeVLM("stock")
    asked = []
    generate = vlm.generate_batch_ids

    def recorded(pixel_values, prompts, options, prefix):
        asked.append([len(prompt) for prompt in prompts])
        return generate(pixel_values, prompts, options, prefix)

    monkeypatch.setattr(vlm, "generate_batch_ids", recorded)
    answers = ask(vlm, batch_size=2).answers["it+scratchpad"]
    second = [length for batch in asked[-3:] for length in batch]
    # Red, green and blue twice, and as many lengths of their names.
    assert second == sorted(second) and len(set(second)) == 3 and [len(set(batch)) for batch in asked[-3:]] == [1] * 3
    assert [answer.raw.split()[1] for answer in answers] == ["red", "green", "blue"] * 2


def test_an_unreadable_image_is_answered_by_nothing_and_named(ask, captions):
    (captions.image_dir / "val" / "3.png").write_bytes(b"")
    answered = ask(FakeVLM("x"), batch_size=4)
    assert list(answered.unreadable) == [97] and "3.png is not a readable image" in answered.unreadable[97]
    for answers in answered.answers.values():
        assert [answer.scored == "" for answer in answers] == [False, False, False, True, False, False]
        assert (answers[3].prompt, answers[3].raw, answers[3].problem) == ("", "", answered.unreadable[97])
    assert "1 image cannot be read and count as empty answers:" in ask.printed and "3.png is not a" in ask.printed
    again = ask(FakeVLM("x"), batch_size=4)
    assert (again.answers, again.unreadable) == (answered.answers, answered.unreadable)


def test_a_mended_image_is_answered(ask, captions):
    path = captions.image_dir / "val" / "3.png"
    good = path.read_bytes()
    path.write_bytes(good[:30])
    assert len(ask(FakeVLM("x")).unreadable) == 1
    assert len(ask(FakeVLM("x")).unreadable) == 1
    path.write_bytes(good)
    answered = ask(FakeVLM("x"))
    assert answered.unreadable == {} and answered.answers["it"][3].raw == "a red square"


def test_images_that_cannot_be_read_at_all(ask, captions):
    for path in captions.image_dir.glob("val/*.png"):
        path.write_bytes(b"x")
    vlm = FakeVLM("x")
    answered = ask(vlm, batch_size=1)
    assert len(answered.unreadable) == 6 and vlm.calls == [] == vlm.reads
    assert ask.printed.count("is not a readable image") == 5 and "..." in ask.printed


def test_what_was_answered_is_not_asked_again(ask):
    first = ask(FakeVLM("x"))
    again = FakeVLM("x")
    answered = ask(again, batch_size=3)
    assert again.calls == [] == again.reads
    assert answered.answers == first.answers
    assert ask.printed.count("all 6 answers are from before, with the same settings") == 2
    assert {rate.captions_per_second for rate in answered.throughput.values()} == {0}


def test_more_images_ask_for_those_alone(ask, captions):
    ask(FakeVLM("x"), images=captions.images[1:5], batch_size=1)
    vlm = FakeVLM("x")
    answered = ask(vlm, batch_size=1)
    # Windows are of four images; the second has one that is new, and goes as a whole as it would have gone at first.
    assert len(vlm.reads) == 6 and answered.throughput["it"].captions == 2
    assert answered.answers == ask(FakeVLM("x")).answers


CHANGES = [{"prompt": "Another?"}, {"max_new_tokens": 11}, {"own_stages": True}]


@pytest.mark.parametrize("changes", CHANGES)
def test_other_settings_ask_anew_and_come_back(ask, changes):
    first = ask(FakeVLM("x"))
    other = FakeVLM("x")
    ask(other, **changes)
    # The direct answers are the same whether or not a model has stages of its own.
    assert [size for size, _ in other.calls] == [6, 6] + [6] * ("own_stages" not in changes)
    same = FakeVLM("x")
    assert ask(same).answers == first.answers and same.calls == []


def test_other_weights_or_dtypes_ask_anew(ask):
    ask(FakeVLM("x"))
    retrained, cast = FakeVLM("x"), FakeVLM("x")
    retrained.checkpoint_sha256 = "f" * 64
    cast.dtype = torch.bfloat16
    for vlm in (retrained, cast):
        ask(vlm)
        assert len(vlm.calls) == 3


def test_another_image_under_the_same_id_is_asked_about(ask, captions):
    ask(FakeVLM("x"))
    Image.new("RGB", (8, 8), (0, 0, 255)).save(captions.image_dir / "val" / "0.png")
    vlm = FakeVLM("x")
    answered = ask(vlm)
    assert vlm.reads and answered.answers["it"][0].raw == "a blue square"
    assert answered.throughput["it"].captions == 1


@pytest.mark.parametrize("kept", [0, 1, 5, 6, 9])
def test_a_run_that_was_cut_off_goes_on_with_the_same_batches(ask, tmp_path, kept):
    """Answers after the first `kept` are lost, the next line is torn."""
    whole, vlm = ask(FakeVLM("x"), batch_size=1).answers, FakeVLM("x")
    left = kept
    for path in sorted((tmp_path / "answers").glob("*.jsonl")):
        content = path.read_text().splitlines(keepends=True)
        path.write_text("".join(content[:left]) + "".join(content[left : left + 1])[:-9])
        left = max(left - len(content), 0)
    answered = ask(vlm, batch_size=1)
    assert answered.answers == whole
    assert sum(rate.captions for rate in answered.throughput.values()) == 12 - kept
    assert len(lines(tmp_path)) == 12 and all(json.loads(line) for line in lines(tmp_path))


def test_answers_are_there_after_every_batch(ask, tmp_path, monkeypatch):
    vlm = FakeVLM("x")
    generate, seen = vlm.generate_batch_ids, []

    def recorded(*arguments):
        seen.append(len(lines(tmp_path)))
        return generate(*arguments)

    monkeypatch.setattr(vlm, "generate_batch_ids", recorded)
    ask(vlm, batch_size=2)
    assert seen == [0, 2, 4, 6, 6, 6, 6, 8, 10]


def test_throughput_counts_what_this_run_wrote(ask, captions):
    answered = ask(FakeVLM("x"), batch_size=4)
    direct, scratchpad = answered.throughput["it"], answered.throughput["it+scratchpad"]
    texts = {name: [answer.raw for answer in own] for name, own in answered.answers.items()}
    analyses = [answer.analysis for answer in answered.answers["it+scratchpad"]]
    assert (direct.captions, direct.tokens) == (6, sum(map(len, texts["it"])))
    assert scratchpad.tokens == sum(map(len, [*texts["it+scratchpad"], *analyses]))
    assert direct.seconds > 0 and direct.captions_per_second == 6 / direct.seconds
    assert scratchpad.tokens_per_second == scratchpad.tokens / scratchpad.seconds


def test_a_prompt_that_is_too_long_for_the_model_is_refused(ask, tmp_path):
    vlm = FakeVLM("x")
    with pytest.raises(UserError, match="--prompt, asked about .* is too long: x reads 2,048 tokens at most"):
        ask(vlm, prompt="What? " * 400)
    assert vlm.calls == [] and not (tmp_path / "answers").exists()


def test_a_long_analysis_never_pushes_the_final_prompt_out(ask, monkeypatch):
    vlm = FakeVLM("x")
    vlm.max_text_length = 240
    monkeypatch.setattr(vlm, "answer", lambda colour, text, stops: f"{'very ' * 60}long")
    for answer in ask(vlm).answers["it+scratchpad"]:
        turn = as_turn(vlm, answer.prompt)
        assert turn.endswith(f"{DEFAULT_PROMPT}\n<|assistant|>\n") and "very very" in answer.prompt
        assert len(turn) <= 240 < len(as_turn(vlm, second_prompt(answer.analysis, DEFAULT_PROMPT)))


def test_a_batch_that_is_too_large(ask, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    vlm = FakeVLM("x")
    monkeypatch.setattr(vlm, "read_images", full)
    with pytest.raises(UserError, match="--batch_size 4 is too large for the memory of cpu: give a smaller one"):
        ask(vlm, batch_size=4)


# With a real model.

COUNT = 18
BATCH = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of noise in a folder: three windows of them."""
    folder = tmp_path_factory.mktemp("photos")
    images = [CaptionedImage(number, f"{number}.png", ("a",)) for number in range(COUNT)]
    for image in images:
        picture(image.image_id, (40 + image.image_id, 64)).save(folder / image.file_name)
    return images, PictureFolder(folder)


def answer_photos(photos, store, world=ALONE, batch_size=BATCH, images=None):
    """Let a model of random values answer, within a few tokens."""
    protocol = Protocol("What is it?", 8, batch_size)
    own = photos[0] if images is None else images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SCRATCHPAD_TOKENS", 12)
        return answer_variants(enliven(scratch_vlm(seed=2)), "it", own, photos[1], protocol, store, False, world, QUIET)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """What one process answers in one go."""
    return answer_photos(photos, tmp_path_factory.mktemp("whole")).answers


def test_batches_answer_as_one_by_one_with_pixels(photos, whole):
    vlm = enliven(scratch_vlm(seed=2))
    for place, image in enumerate(photos[0]):
        pixels = photos[1].load(image)
        assert whole["it"][place].raw == vlm.generate(pixels, as_turn(vlm, "What is it?"), max_new_tokens=8)
        answer = whole["it+scratchpad"][place]
        assert answer.analysis == vlm.generate(pixels, as_turn(vlm, ANALYSIS_PROMPT), max_new_tokens=12)
        assert answer.prompt == second_prompt(answer.analysis, "What is it?")
        assert answer.raw == vlm.generate(pixels, as_turn(vlm, answer.prompt), max_new_tokens=8)
    # Lively enough for that to mean something.
    assert len({answer.raw for answer in whole["it"]}) > COUNT // 2


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_changes_no_answer_beyond_rounding(photos, whole, tmp_path, batch_size):
    answers = answer_photos(photos, tmp_path, batch_size=batch_size).answers
    differing = sum(
        one.raw != other.raw for name in whole for one, other in zip(whole[name], answers[name], strict=True)
    )
    # In fp32 no two tokens of these are equally likely.
    assert differing == 0


def work(world, photos, folder):
    """What a second and a third process do, as torchrun would start them."""
    answered = answer_photos(photos, folder / "answers", world)
    found = {name: [vars(answer) for answer in own] for name, own in answered.answers.items()}
    counts = {name: rate.captions for name, rate in answered.throughput.items()}
    (folder / f"{world.rank}.json").write_text(json.dumps([found, counts]))


def test_two_processes_answer_as_one_and_go_on_where_one_was(photos, whole, tmp_path):
    # One process has answered the first window but for its last images, and was killed.
    answer_photos(photos, tmp_path / "answers", images=photos[0][: BATCH * WINDOW_BATCHES])
    for path in (tmp_path / "answers").glob("*.jsonl"):
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n", 0, -300) + 20])
    known = len(lines(tmp_path)) - 2
    assert 0 < known < 2 * BATCH * WINDOW_BATCHES
    together(2, tmp_path, work, photos, tmp_path)
    expected = {name: [vars(answer) for answer in own] for name, own in whole.items()}
    for rank in (0, 1):
        found, counts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == expected
        assert sum(counts.values()) == 2 * COUNT - known
    # Each wrote a file of its own for each variant, and each answer is there once.
    assert len(list((tmp_path / "answers").glob("*.rank1.jsonl"))) == 2
    assert len(lines(tmp_path)) == 2 * COUNT
    again = answer_photos(photos, tmp_path / "answers")
    assert again.answers == whole and again.throughput["it"].captions == 0


@pytest.mark.parametrize(("search", "own_stages"), [("best-of-n", False), ("stage-beam", True)])
def test_searched_answers_do_not_depend_on_the_batch_and_are_kept_apart(ask, tmp_path, search, own_stages):
    vlm, images = enliven(scratch_vlm()), ask.captions.images[:2]
    greedy = ask(vlm, own_stages, images, max_new_tokens=40)
    found = ask(vlm, own_stages, images, max_new_tokens=40, batch_size=2, search=search, beams=2)
    assert len(lines(tmp_path)) == 4 * 2
    assert found.throughput["it"].tokens > greedy.throughput["it"].tokens
    protocol = Protocol(max_new_tokens=40, batch_size=1, search=search, beams=2)
    pictures, again = PictureFolder(ask.captions.image_dir), tmp_path / "again"
    other = answer_variants(vlm, "it", images, pictures, protocol, again, own_stages, ALONE, QUIET)
    assert other.answers == found.answers
    if own_stages:
        assert all(answer.valid_structure for answer in found.answers["it"])
