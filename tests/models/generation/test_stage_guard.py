"""The guard of the four stages: whatever a model wants to write, what comes out is well formed and bounded."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.generation.stage_guard import StageGuard, TokenTexts
from cobra.reasoning.trace import STAGE_TAGS, extract_reasoning_trace
from cobra.util.errors import UserError

# Tokens of a hostile vocabulary: tags in every kind of piece.
PIECES = [
    "",
    *("<", " <", "</", " </", "<\n", "< / ", "/", ">", " >", ">\n", "></", "> and", "\ufffd"),
    *("SUMMARY", "SUM", "MARY", "MARY>", "S", "CAPTION", "CAP", "TION>", "CAPTAIN", "REASONING", "CONCLUSION"),
    *("<SUMMARY>", "</SUMMARY>", " </SUMMARY>", "</CAPTION>", "<CAPTION> x", "</REASONING>", "</CONCLUSION>", "<CON"),
    *(" ", "\n", "\n\n", "a", " word", "1", ".", "<a", "x<C", "C", "AP"),
]
# Whatever is forced can be written a character at a time, as if nothing longer were known.
CHARACTERS = sorted(set("".join(f"<{tag}></{tag}>\n " for tag in STAGE_TAGS)))
VOCABULARY = PIECES + [character for character in CHARACTERS if character not in PIECES]


def spell(text):
    return [VOCABULARY.index(character) for character in text]


@pytest.fixture(scope="module")
def tiny_texts():
    tokenizer = load_tokenizer(TINY_FOLDER, 512)
    return TokenTexts(
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


def hostile_texts():
    return TokenTexts(lambda ids: "".join(VOCABULARY[token] for token in ids), spell)


def write(guard, wishes):
    """Let a model that wishes for tokens write; a refused wish is followed by the next one."""
    ids = []
    wishes = iter(wishes)
    while not guard.ended:
        token = guard.forced[0] if guard.forced else next(wishes)
        if guard.forced or guard.admits(token):
            guard.advance(token)
            ids.append(token)
    return ids


def endless(wishes):
    """The wishes over and over, and an ordinary word now and then, which every model has."""
    while True:
        yield from wishes
        yield VOCABULARY.index(" word")


@settings(max_examples=400, deadline=None)
@given(
    wishes=st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=60),
    room=st.integers(0, 60),
    stage_tokens=st.integers(1, 30),
)
def test_whatever_is_wished_for_the_answer_is_well_formed(wishes, room, stage_tokens):
    texts = hostile_texts()
    limit = least(texts) + room
    ids = write(StageGuard(texts, limit, stage_tokens), endless(wishes))
    text = "".join(VOCABULARY[token] for token in ids)
    trace = extract_reasoning_trace(text)
    assert trace.is_valid, (text, trace.faults)
    assert len(ids) <= limit


def least(texts):
    """The fewest tokens that a guard asks for."""
    with pytest.raises(UserError) as error:
        StageGuard(texts, 0, 1)
    return int(str(error.value).partition("take ")[2].partition(";")[0])


@settings(max_examples=60, deadline=None)
@given(wishes=st.lists(st.integers(0, 767), min_size=1, max_size=80), room=st.integers(0, 80))
def test_any_tokens_of_a_real_vocabulary(tiny_texts, wishes, room):
    limit = least(tiny_texts) + room

    def wished():
        while True:
            yield from wishes
            yield from tiny_texts.encode(" a red circle")

    ids = write(StageGuard(tiny_texts, limit, 200), wished())
    text = "".join(tiny_texts[token] for token in ids)
    assert extract_reasoning_trace(text).is_valid, text
    assert len(ids) <= limit


def test_a_well_formed_answer_passes_unchanged(tiny_texts):
    parts = ["I count.", "A red circle.\nAnd a < b, 3 <C, <AB>, a</b>.", "1 + 1 = 2", "2"]
    answer = "\n\n".join(f"<{tag}> {part} </{tag}>" for tag, part in zip(STAGE_TAGS, parts, strict=True))
    guard = StageGuard(tiny_texts, 512, 256)
    forced = 0
    for token in tiny_texts.encode(answer):
        forced += bool(guard.forced)
        assert guard.admits(token)
        guard.advance(token)
    assert guard.ended
    assert forced == sum(
        len(tiny_texts.encode(("\n\n" if place else "") + f"<{tag}>")) for place, tag in enumerate(STAGE_TAGS)
    )


def at_body(text, stage=0, texts=None):
    """A guard in a stage that has some text."""
    guard = StageGuard(texts or hostile_texts(), 2000, 200)
    for tag in STAGE_TAGS[:stage]:
        guard.take_forced()
        for token in spell("a") + spell(f"</{tag}>"):
            guard.advance(token)
    assert guard.stage == stage
    guard.take_forced()
    for token in spell(text):
        assert guard.admits(token), text
        guard.advance(token)
    return guard


@pytest.mark.parametrize(
    ("body", "piece", "good"),
    [
        ("a", "</SUMMARY>", True),
        ("a", "</CAPTION>", False),
        ("a", "<SUMMARY>", False),
        ("a<", "CAPTION", False),
        ("a<", "CAPTAIN", True),
        ("a<", "C", True),
        ("a<C", "AP", False),
        ("a<", "/", True),
        ("a</", "SUM", True),
        ("a</", "CAP", False),
        ("a</SUM", "MARY>", True),
        ("a</SUM", "MARY", True),
        ("a</SUMMARY", ">", True),
        ("a</SUMMARY", ">\n", True),
        ("a</SUMMARY", "> and", False),
        ("a</SUMMARY", "></", False),
        ("a</SUMMARY", " >", True),
        ("", "</SUMMARY>", False),
        ("", "</", False),
        ("", "<", True),
        ("<", "/", False),
        (" ", " </", False),
        ("", "", False),
        ("a", "", False),
        ("a", "<CON", False),
        ("a", "\ufffd", True),
    ],
)
def test_what_may_come_next(body, piece, good):
    assert at_body(body).admits(VOCABULARY.index(piece)) is good


def test_a_later_stage_has_its_own_tag():
    assert at_body("a", 2).admits(VOCABULARY.index("</REASONING>"))
    assert not at_body("a", 2).admits(VOCABULARY.index("</SUMMARY>"))
    assert at_body("a", 3).admits(VOCABULARY.index("</CONCLUSION>"))


def test_a_stage_that_is_full_is_closed():
    texts = hostile_texts()
    guard = StageGuard(texts, 2000, 3)
    ids = write(guard, endless([VOCABULARY.index("a")]))
    text = "".join(VOCABULARY[token] for token in ids)
    assert text.startswith("<SUMMARY>a worda </SUMMARY>\n\n<CAPTION>")
    assert extract_reasoning_trace(text).is_valid


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        ("aa", " </SUMMARY>"),
        ("a<", "/SUMMARY>"),
        ("</", None),
        ("aa</S", "UMMARY>"),
        ("a</ SU", "MMARY>"),
        ("a<S", " </SUMMARY>"),
    ],
)
def test_a_closing_tag_that_was_begun_is_finished(body, rest):
    guard = StageGuard(hostile_texts(), 2000, len(body))
    guard.take_forced()
    for token in spell(body):
        if not guard.admits(token):
            assert rest is None
            return
        guard.advance(token)
    assert "".join(VOCABULARY[token] for token in guard.forced) == rest


def test_a_model_that_wants_nothing_but_tags_is_cut_short():
    guard = at_body("a")
    for _ in range(32):
        assert not guard.forced
        assert not guard.admits(VOCABULARY.index("<SUMMARY>"))
    assert "".join(VOCABULARY[token] for token in guard.forced) == " </SUMMARY>"
    assert not guard.admits(VOCABULARY.index("a"))
    assert guard.admits(VOCABULARY.index(" "))


def test_a_copy_goes_on_by_itself():
    guard = at_body("a")
    other = guard.copy()
    other.advance(VOCABULARY.index("</SUMMARY>"))
    assert (guard.stage, other.stage) == (0, 1)
    taken = other.copy().take_forced()
    assert "".join(VOCABULARY[token] for token in taken) == "\n\n<CAPTION>"
    assert other.forced == taken and guard.forced == []


def test_a_stage_that_would_not_end_leaves_room_to_those_after_it(tiny_texts):
    """As a model does that has learned no stages."""
    word = tiny_texts.encode(" red")
    ids = write(StageGuard(tiny_texts, 512, 256), itertools.cycle(word))
    trace = extract_reasoning_trace("".join(tiny_texts[token] for token in ids))
    lengths = [len(tiny_texts.encode(f" {text}")) for text in (trace.summary, trace.caption, trace.reasoning)]
    assert len(ids) <= 512 and lengths[0] == 256 and min(lengths) > 30 < len(tiny_texts.encode(trace.conclusion))


@pytest.mark.parametrize(("limit", "stage"), [(20, 8), (500, 0)])
def test_no_room_for_four_stages(tiny_texts, limit, stage):
    with pytest.raises(UserError, match=rf"{limit} new tokens, {stage} a stage, leave no room for the four stages"):
        StageGuard(tiny_texts, limit, stage)
