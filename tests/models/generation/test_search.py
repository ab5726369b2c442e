"""Search over answers: with a scripted model, whose best branch is known, and with small Mambas."""

import math
import re
from collections import Counter

import pytest
import torch
from scratch import enliven, picture, scratch_vlm, search_options
from scripted_lm import END, TEXTS, ScriptedLM, decode, encode, four_stages, letters_of

import cobra
from cobra.demo.questions import CAPTION_PROMPTS
from cobra.models.generation import memory
from cobra.models.generation.scorers import Candidate, FunctionScorer, JudgementScorer, LikelihoodScorer, sort_by_vote
from cobra.models.generation.search import Search
from cobra.models.mamba import MambaState
from cobra.models.vlms import SearchOptions
from cobra.reasoning.trace import STAGE_TAGS, extract_reasoning_trace
from cobra.util.errors import UserError

KINDS = ("none", "best-of-n", "vote", "stage-beam")
# Bytes of a branch of the scripted model: three states of two fp32 numbers, and 40 for each score.
BRANCH_BYTES = 3 * 8 + 40 * 128


def run(llm, options, *prompts, scorer=None, seeds=None, question=""):
    """Search the answers to prompts; of seeds there is one for each."""
    llm = llm if isinstance(llm, ScriptedLM) else ScriptedLM(four_stages(llm))
    state, scores = llm.start(*(f"{prompt}|" for prompt in prompts or ("p",)))
    search = Search(llm, TEXTS, decode, END, scorer or LikelihoodScorer(), options)
    seeds = [str(seed) for seed in seeds or range(len(prompts) or 1)]
    return search.run(state, scores, seeds, [question] * len(seeds))


def sampled(kind, **options):
    """Options that sample just what the script says."""
    return search_options(kind, **{"temperature": 1.0, "top_p": 1.0} | options)


def answer(letters):
    return "\n\n".join(f"<{tag}> {letter} </{tag}>" for tag, letter in zip(STAGE_TAGS, letters, strict=True))


def even(_prompt, _letters):
    return dict.fromkeys("abcd", 0.25)


def by_letters(*wanted):
    """A scorer that counts the letters that are as each prompt wants them."""
    return FunctionScorer(
        lambda prompt, text: sum(one == other for one, other in zip(letters_of(text), wanted[prompt], strict=False)),
        decode,
    )


@pytest.mark.parametrize("guard", [True, False])
def test_every_stage_is_chosen_by_itself(guard):
    """Of 16 whole answers hardly one has all four letters; of 16 branches of each stage one has the next."""
    [result] = run(even, sampled("stage-beam", beams=16, guard=guard), scorer=by_letters("bdac"))
    assert result.text == answer("bdac")
    assert result.score == 4
    assert [found[0].score for found in result.rounds] == [1, 2, 3, 4]
    [whole] = run(even, sampled("best-of-n", beams=16, guard=guard), scorer=by_letters("bdac"))
    assert whole.score < 4


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("guard", [True, False])
def test_what_is_kept_is_what_is_branched(keep, guard):
    [result] = run(even, sampled("stage-beam", beams=8, keep=keep, guard=guard))
    for before, after in zip(result.rounds, result.rounds[1:], strict=False):
        kept = list(dict.fromkeys(candidate.text for candidate in before))[:keep]
        roots = Counter(next(text for text in kept if candidate.text.startswith(text)) for candidate in after)
        # The branches are shared out evenly, what is over going to the best.
        assert [roots[text] for text in kept] == [8 // keep + (place < 8 % keep) for place in range(keep)]
    assert [len(letters_of(found[0].text)) for found in result.rounds] == [1, 2, 3, 4]


def trap(_prompt, letters):
    """The likeliest first letter leads to unlikely ones."""
    if not letters:
        return {"a": 0.6, "b": 0.4}
    return {"c": 1.0} if letters[0] == "b" else dict.fromkeys("cdefghij", 0.1)


def test_keeping_more_finds_what_one_step_misses():
    [greedy] = run(trap, SearchOptions("none"))
    [narrow] = run(trap, sampled("stage-beam", beams=32, keep=1))
    [wide] = run(trap, sampled("stage-beam", beams=32, keep=2))
    assert (letters_of(greedy.text)[0], letters_of(narrow.text)[0]) == ("a", "a")
    assert letters_of(wide.text) == "bccc"
    assert wide.score > narrow.score


def test_the_likelihood_is_that_of_what_was_chosen():
    """By hand: after the forced opening tag the model writes a space, the letter and the closing tag."""
    [result] = run(trap, sampled("stage-beam", beams=32, keep=2))
    chosen = sum(len(f" b </{tag}>") for tag in STAGE_TAGS)
    assert result.score == pytest.approx(math.log(0.4) / chosen, rel=1e-5)
    # Sharper sampling does not change what the model thinks of an answer.
    [sharp] = run(trap, sampled("best-of-n", beams=2, temperature=0.01))
    assert letters_of(sharp.text)[0] == "a"
    assert sharp.score == pytest.approx((math.log(0.6) + 3 * math.log(0.125)) / chosen, rel=1e-4)
    [free] = run(trap, sampled("best-of-n", beams=2, temperature=0.01, guard=False))
    # Unguarded it has written the tags and the end token too.
    assert free.score == pytest.approx((math.log(0.6) + 3 * math.log(0.125)) / (len(answer("accc")) + 1), rel=1e-4)


def test_the_best_of_several():
    [result] = run(even, sampled("best-of-n", beams=12), scorer=by_letters("bdac"))
    assert len(result.candidates) == 12 and result.rounds == [result.candidates]
    scores = [candidate.score for candidate in result.candidates]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert (result.text, result.score) == (result.candidates[0].text, scores[0])
    assert all(extract_reasoning_trace(candidate.text).is_valid for candidate in result.candidates)


def split_vote(_prompt, letters):
    """One conclusion is the likeliest, but most say another one in two spellings."""
    return {"x": 0.4, "y": 0.3, "Y": 0.3} if len(letters) == 3 else {"a": 1.0}


@pytest.mark.parametrize("guard", [True, False])
def test_a_vote_counts_conclusions_that_say_the_same(guard):
    options = sampled("vote", beams=60, guard=guard)
    [result] = run(split_vote, options, seeds=[2])
    votes = Counter(letters_of(candidate.text)[3].lower() for candidate in result.candidates)
    assert votes["y"] > votes["x"]
    assert extract_reasoning_trace(result.text).conclusion.lower() == "y"
    assert [candidate.votes for candidate in result.candidates] == [votes["y"]] * votes["y"] + [votes["x"]] * votes["x"]


@pytest.mark.fault("D2")
def test_votes_are_counted_by_the_rule_of_the_score():
    given = candidates("7", "1,000", "1000", "The answer is B", "B", "(b) blue", "blue")
    assert [one.votes for one in sort_by_vote(given, "")] == [2, 2, 2, 2, 1, 1, 1]
    ordered = sort_by_vote(given, "Which? A. red B. blue")
    assert [one.votes for one in ordered] == [4, 4, 4, 4, 2, 2, 1]
    assert extract_reasoning_trace(ordered[0].text).conclusion == "The answer is B"


@pytest.mark.fault("D2")
def test_the_question_of_a_prompt_joins_an_option_and_its_letter():
    def script(_prompt, letters):
        return {"x": 0.4, "7": 0.3, "b": 0.3} if len(letters) == 3 else {"a": 1.0}

    options = sampled("vote", beams=60)
    [plain] = run(script, options, seeds=[2])
    [asked] = run(script, options, seeds=[2], question="Which? A. 8 B. 7")
    votes = Counter(letters_of(candidate.text)[3] for candidate in plain.candidates)
    assert plain.candidates[0].votes == max(votes.values())
    assert asked.candidates[0].votes == votes["7"] + votes["b"] > votes["x"]


def candidates(*conclusions):
    """Best first."""
    return [
        Candidate(f"<CONCLUSION> {conclusion} </CONCLUSION>" if conclusion else "none", -float(place), 0.0, 1)
        for place, conclusion in enumerate(conclusions)
    ]


@pytest.mark.parametrize(
    ("conclusions", "winner", "votes"),
    [
        ("aab", 0, 2),
        ("abb", 1, 2),
        ("ba", 0, 1),
        ("baab", 0, 2),
        (["", "", "b"], 2, 1),
        (["", ""], 0, 0),
        (["A.", "b", "(a)", "b", "a"], 0, 3),
    ],
)
def test_ties_of_a_vote_go_to_the_best_answer(conclusions, winner, votes):
    given = candidates(*conclusions)
    ordered = sort_by_vote(given, "")
    assert (ordered[0].text, ordered[0].score, ordered[0].votes) == (given[winner].text, given[winner].score, votes)
    assert Counter(one.text for one in ordered) == Counter(one.text for one in given)


def judged(script, chances):
    """A model that, asked by `?`, says yes with a chance that goes with the letters so far."""

    def with_question(history):
        if "?" not in history:
            return script(history)
        chance = chances.get(letters_of(history.partition("|")[2]), 0.5)
        return {"Y": chance * 0.01, "N": (1 - chance) * 0.01, "x": 0.99}

    return ScriptedLM(with_question)


@pytest.mark.parametrize("guard", [True, False])
def test_the_model_judges_its_branches(guard):
    llm = judged(four_stages(even), {"c": 0.8, "ca": 0.9, "cb": 0.95, "cbd": 0.6, "cbda": 0.7})
    scorer = JudgementScorer(llm, encode("?!"), ord("Y"), ord("N"))
    [result] = run(llm, sampled("stage-beam", beams=24, guard=guard), scorer=scorer)
    # It goes on as if nobody had asked.
    assert result.text == answer("cbda")
    assert [found[0].score for found in result.rounds] == pytest.approx([0.8, 0.95, 0.6, 0.7], rel=1e-5)
    # Of every branch its last token and the question are read to judge it.
    [unjudged] = run(llm, sampled("stage-beam", beams=24, guard=guard))
    assert result.tokens_spent == unjudged.tokens_spent + 4 * 24 * 3


def test_an_end_token_is_not_read_twice_when_the_model_judges():
    llm = judged(four_stages(even), {"abcd": 0.9})
    scorer = JudgementScorer(llm, [END, *encode("?")], ord("Y"), ord("N"))
    [result] = run(llm, sampled("best-of-n", beams=2, guard=False), scorer=scorer)
    asked = [history for history in llm.histories if history.endswith("?")]
    assert asked and all(history.count(chr(END)) == 1 for history in asked)
    assert result.tokens_spent == 2 * (len(answer("abcd")) + 1) + 2 * 2


def test_a_branch_costs_a_copy_of_the_state():
    """Neither the prompt nor an earlier stage is ever read again."""
    llm = ScriptedLM(four_stages(even))
    short, long = run(llm, sampled("stage-beam", beams=6, keep=2), "p", "p" * 5000)
    assert short.state_bytes == long.state_bytes == 8
    assert short.copied_bytes == long.copied_bytes == 4 * 6 * 8
    # A stage's opening tag is read at once, and the token before it with it; everything else token by token.
    assert {steps for _, steps in llm.passes} == {1} | {
        len(f"<{tag}>") + (3 if place else 0) for place, tag in enumerate(STAGE_TAGS)
    }
    assert max(rows for rows, _ in llm.passes) == 12


def test_tokens_are_counted():
    [result] = run(even, sampled("stage-beam", beams=6))
    # Six branches of every stage; its opening tag is read once for all.
    opening = sum(len(f"<{tag}>") for tag in STAGE_TAGS) + 3 * 2
    assert result.tokens_spent == opening + 6 * sum(len(f" a </{tag}>") for tag in STAGE_TAGS)
    [whole] = run(even, sampled("best-of-n", beams=6))
    assert whole.tokens_spent == len("<SUMMARY>") + 6 * (len(answer("aaaa")) - len("<SUMMARY>"))
    assert {candidate.tokens for candidate in whole.candidates} == {len(answer("aaaa"))}
    [one] = run(even, SearchOptions("none", guard=False))
    assert (one.tokens_spent, one.text) == (len(answer("aaaa")) + 1, answer("aaaa"))


def uneven(prompt, letters):
    """What comes next, and how likely it is, depends on all that was read: mixed-up states show."""
    start = sum(map(ord, prompt + letters))
    return {"abcdefgh"[(start + shift) % 8]: 0.5**shift for shift in range(5)}


GIB = 2**30
UNLIMITED = 9223372036854771712


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/jobs/one", {"jobs/memory": (8, 7, 1), "jobs/one/memory": ("max", 3, 0)}, 2),
        ("0::/jobs/one", {"jobs/memory": (8, 1, 0), "jobs/one/memory": (4, 3, 2)}, 3),
        # A container sees its own group at the root, and another's path.
        ("0::/outside", {"memory": (2, 1, 0)}, 1),
        ("3:cpu:/x\n2:memory,hugetlb:/jobs", {"memory/jobs/memory": (5, 2, 0)}, 3),
        ("2:memory:/", {"memory/memory": (UNLIMITED / GIB, 2, 0)}, 10),
        ("0::/", {}, 10),
    ],
)
def test_memory_ends_where_a_container_ends(monkeypatch, tmp_path, groups, files, left):
    (tmp_path / "cgroup").write_text(groups + "\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {10 * 2**20} kB\n")
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    names = {kind: entry[1:] for kind, entry in memory._GROUP_FILES.items()}
    roots = {"": tmp_path, "memory": tmp_path / "memory"}
    monkeypatch.setattr(memory, "_GROUP_FILES", {kind: (roots[kind], *names[kind]) for kind in names})
    for place, (limit, used, cached) in files.items():
        folder = (tmp_path / place).parent
        folder.mkdir(parents=True, exist_ok=True)
        limit_file, used_file, cached_key = names["" if groups.startswith("0") else "memory"]
        (folder / limit_file).write_text(f"{limit if limit == 'max' else int(limit * GIB)}\n")
        (folder / used_file).write_text(f"{used * GIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached_key} {cached * GIB}\nother 2\n")
    assert memory.free_memory(torch.device("cpu")) == left * GIB


@pytest.mark.parametrize("kind", KINDS)
def test_branches_that_do_not_fit_wait_and_nothing_else_changes(kind):
    prompts, seeds = ["p", "q", "r"], [5, 6, 7]
    options = {"beams": 7, "keep": 2}
    expected = run(uneven, sampled(kind, **options), *prompts, seeds=seeds)
    llm = ScriptedLM(four_stages(uneven))
    room = (4 * BRANCH_BYTES + 2 * 12 * 8) / 2**30
    assert run(llm, sampled(kind, **options, memory=room), *prompts, seeds=seeds) == expected
    # Those that are branched are read together, at most two of each prompt; four are written at a time.
    assert max(rows for rows, steps in llm.passes if steps == 1) == (3 if kind == "none" else 4)


def test_more_branches_than_memory():
    llm = ScriptedLM(four_stages(even))
    with pytest.raises(UserError, match=r"keeps 2 states of 0.0 MiB.*ask fewer prompts at once, keep fewer"):
        run(llm, sampled("stage-beam", memory=BRANCH_BYTES / 2**30), "p")
    # It is told before anything was written.
    assert {steps for _, steps in llm.passes} == {len("<SUMMARY>")}


def test_the_estimate_follows_the_model(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10 * 2**30)
    config = scratch_vlm().llm_backbone.llm.config
    state = MambaState.zeros(config, 1, "cpu").nbytes
    assert memory.state_bytes(config) == state
    fitting = memory.branches_at_once(config, torch.device("cpu"), 0, 10**9, None)
    assert fitting == int(8 * 2**30 // (3 * state + 40 * config.padded_vocab_size))
    assert memory.branches_at_once(config, torch.device("cpu"), 0, 5, None) == 5


def test_free_memory_is_this_machines():
    assert 2**20 < memory.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guard", [True, False])
def test_an_answer_is_the_same_in_any_batch(kind, guard):
    def by_prompt(prompt, letters):
        return {"abcdefgh"[(ord(prompt) + len(letters) + shift) % 8]: 0.25 for shift in range(4)}

    options = sampled(kind, beams=5, keep=2, guard=guard)
    together = run(by_prompt, options, *"pqr", seeds=[1, 2, 3])
    assert together == [
        run(by_prompt, options, prompt, seeds=[seed])[0] for prompt, seed in zip("pqr", [1, 2, 3], strict=True)
    ]
    assert together == run(by_prompt, options, *"pqr", seeds=[1, 2, 3])
    assert len({result.text for result in together}) == 3
    others = run(by_prompt, options, *"pqr", seeds=[4, 5, 6])
    assert (together == others) is (kind == "none")


def early_end(_prompt, letters):
    return {"a": 0.5, chr(END): 0.5} if len(letters) == 1 else {"a": 1.0}


def test_an_answer_that_has_ended_stays_among_the_best():
    options = sampled("stage-beam", beams=8, keep=2, guard=False)
    scorer = FunctionScorer(lambda _, text: -len(text), decode)
    [result] = run(early_end, options, scorer=scorer)
    assert result.text == "<SUMMARY> a </SUMMARY>\n\n<CAPTION>"
    # It is not branched again: the others are.
    assert [len(found) for found in result.rounds] == [8, 8, 9, 9]
    assert all(found[0].text == result.text for found in result.rounds[1:])
    [long] = run(early_end, options, scorer=FunctionScorer(lambda _, text: len(text), decode))
    assert long.text == answer("aaaa")


def test_of_answers_that_are_alike_one_is_kept():
    def mostly(_prompt, letters):
        return {"a": 0.9, "b": 0.1} if not letters else {"a": 1.0}

    [result] = run(mostly, sampled("stage-beam", beams=40, keep=2))
    assert Counter(letters_of(one.text) for one in result.rounds[0])["a"] > 30
    assert Counter(letters_of(one.text) for one in result.rounds[1]) == {"aa": 20, "ba": 20}


def endless(_history):
    return {"z": 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind):
    [free] = run(ScriptedLM(endless), sampled(kind, guard=False, max_new_tokens=30))
    assert free.text == "z" * 30
    [guarded] = run(ScriptedLM(endless), sampled(kind, max_new_tokens=200, stage_tokens=7))
    assert guarded.text == "\n\n".join(f"<{tag}>zzzzzzz </{tag}>" for tag in STAGE_TAGS)
    [short] = run(ScriptedLM(endless), sampled(kind, max_new_tokens=120))
    assert extract_reasoning_trace(short.text).is_valid and short.candidates[0].tokens <= 120


def shouting(history):
    """A model that wants other tags than those that are due."""
    return {"<": 0.9, "R": 0.5, "E": 0.5, "A": 0.5, "/": 0.2, "x": 0.05}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_breaks_the_order_is_led(kind):
    [result] = run(ScriptedLM(shouting), sampled(kind, max_new_tokens=300, stage_tokens=30))
    assert extract_reasoning_trace(result.text).is_valid


def test_pieces_are_told_as_they_are_decided():
    llm = ScriptedLM(four_stages(even))
    for keep in (1, 3):
        search = Search(llm, TEXTS, decode, END, by_letters("bdac"), sampled("stage-beam", beams=9, keep=keep))
        pieces = list(search.decided(*llm.start("p|"), "1", ""))
        [result] = run(llm, sampled("stage-beam", beams=9, keep=keep), scorer=by_letters("bdac"), seeds=[1])
        assert "".join(pieces) == result.text
        if keep == 1:
            assert [letters_of(piece) for piece in pieces[:4]] == list(letters_of(result.text))
    search = Search(llm, TEXTS, decode, END, LikelihoodScorer(), sampled("vote"))
    assert len(list(search.decided(*llm.start("p|"), "1", ""))) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "beam"}, "search 'beam' is unknown; the known ones are: none, best-of-n, vote, stage-beam"),
        ({"scorer": "likely"}, "scorer 'likely' is unknown; the known ones are: likelihood, judgement"),
        ({"beams": 0}, "0 branches and is to keep 1"),
        ({"beams": 10**9}, "1,000,000,000 branches of each prompt, more than the 4,096 .* give fewer .beams."),
        ({"beams": 2, "keep": 3}, "2 branches and is to keep 3"),
        ({"keep": 0}, "4 branches and is to keep 0"),
        ({"memory": 0.0}, "memory of the search is 0.0 GiB"),
        ({"temperature": 0.0}, "^temperature is 0.0"),
        ({"max_new_tokens": 0}, "^max_new_tokens is 0"),
        ({"min_p": 2.0}, "^min_p is 2.0"),
        ({"repetition_penalty": 1.2}, "a search does not know repetition_penalty, and 1.2 is given: leave it out"),
    ],
)
def test_options_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        search_options(**fields)


@pytest.mark.parametrize("value", [None, "good", float("nan")])
def test_a_scorer_that_returns_no_number(value):
    with pytest.raises(UserError, match=f"scorer returned {value!r} for prompt 1: it must return a number"):
        run(
            even,
            sampled("best-of-n"),
            "p",
            "q",
            scorer=FunctionScorer(lambda prompt, _: value if prompt else 1, decode),
        )


# With models that have weights.

QUESTIONS = ["What is it?", "Which of the many things is the red one on the left?", "How many?"]


@pytest.fixture(scope="module")
def lively():
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def tiny():
    return cobra.load("cobra-tiny", device="cpu")


def turns(vlm, questions):
    prompts = []
    for question in questions:
        builder = vlm.get_prompt_builder()
        builder.add_turn("human", question)
        prompts.append(builder.get_prompt())
    return prompts


SMALL = {"beams": 3, "keep": 2, "max_new_tokens": 160, "stage_tokens": 10}


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_model_is_led_through_the_stages(tiny, kind):
    """It was never shown any."""
    pixels = tiny.preprocess([picture(index) for index in range(2)])
    prompts = turns(tiny, CAPTION_PROMPTS[:1] * 2)
    options = search_options(kind, guard=True, **SMALL)
    results = tiny.search_batch(pixels, prompts, options, torch.Generator().manual_seed(0))
    for result in results:
        assert extract_reasoning_trace(result.text).is_valid
        assert result.state_bytes == MambaState.zeros(tiny.llm_backbone.llm.config, 1, "cpu").nbytes
        assert all(candidate.tokens <= 160 for candidate in result.candidates)
    again = tiny.search_batch(pixels, prompts, options, torch.Generator().manual_seed(0))
    assert again == results


@pytest.mark.parametrize(
    ("kind", "scorer"),
    [*((kind, "likelihood") for kind in KINDS), ("best-of-n", "judgement"), ("stage-beam", "judgement")],
)
def test_images_and_branches_in_one_batch_are_as_one_by_one(lively, kind, scorer):
    pixels = lively.preprocess([picture(index) for index in range(3)])
    prompts, options = turns(lively, QUESTIONS), search_options(kind, scorer=scorer, temperature=2.0, **SMALL)
    together = lively.search_batch(pixels, prompts, options, seeds=[1, 2, 3])
    prefix = lively.read_images(pixels)
    for row, found in enumerate(together):
        alone = lively.search_batch(
            None, prompts[row : row + 1], options, seeds=[row + 1], prefix=prefix.select(torch.tensor([row]))
        )[0]
        assert [one.text for one in alone.candidates] == [one.text for one in found.candidates]
        assert alone.score == pytest.approx(found.score, rel=1e-3)
        assert (alone.tokens_spent, alone.copied_bytes) == (found.tokens_spent, found.copied_bytes)
    assert len({result.text for result in together}) == 3


def test_without_a_search_and_a_guard_it_is_the_greedy_answer(lively):
    pixels = lively.preprocess([picture(index) for index in range(3)])
    prompts = turns(lively, QUESTIONS)
    found = lively.search_batch(pixels, prompts, search_options(guard=False, max_new_tokens=20))
    assert [result.text for result in found] == lively.generate_batch(pixels, prompts, max_new_tokens=20)


def test_the_likelihood_is_that_of_a_forward_pass(lively, monkeypatch):
    [prompt] = turns(lively, QUESTIONS[:1])
    decode, written = lively.decode, {}

    def recorded(ids):
        written[decode(ids).strip()] = list(ids)
        return decode(ids)

    monkeypatch.setattr(lively, "decode", recorded)
    options = search_options("best-of-n", guard=False, max_new_tokens=9, temperature=3.0)
    [result] = lively.search_batch(None, [prompt], options, seeds=[1])
    assert len(result.candidates) == 4
    for candidate in result.candidates:
        ids, answer = lively.tokenize(prompt), written[candidate.text]
        assert len(answer) == candidate.tokens == 9
        with torch.no_grad():
            logits = lively(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).mean().item()
        assert candidate.mean_log_likelihood == candidate.score == pytest.approx(expected, rel=1e-4)


def test_a_users_scorer_sees_the_prompt_and_the_text(lively):
    seen = set()

    def shortest(prompt, text):
        seen.add((prompt, len(re.findall(r"</[A-Z]+>", text))))
        return -len(text)

    results = lively.search_batch(
        None, turns(lively, QUESTIONS), search_options("stage-beam", **SMALL), seeds=[1, 2, 3], scorer=shortest
    )
    assert seen == {(prompt, stage) for prompt in range(3) for stage in range(1, 5)}
    assert all(result.score == -len(result.text) for result in results)


def test_the_question_follows_as_a_turn(lively, monkeypatch):
    read = []
    scorer = JudgementScorer.score

    def recorded(self, branches, state):
        read.append(lively.llm_backbone.tokenizer.decode(self.question))
        return scorer(self, branches, state)

    monkeypatch.setattr(JudgementScorer, "score", recorded)
    options = search_options("best-of-n", scorer="judgement", question="Right?", **SMALL)
    lively.search_batch(None, turns(lively, QUESTIONS[:1]), options)
    assert read == ["<|endoftext|>\n<|user|>\nRight?<|endoftext|>\n<|assistant|>\n"]


def test_a_model_that_cannot_judge(lively, monkeypatch):
    options = SearchOptions("best-of-n", scorer="judgement")
    monkeypatch.setattr(lively, "string2idx", {"No": 5})
    with pytest.raises(UserError, match="Yes is not a single token"):
        lively.search_batch(None, ["A"], options)
    monkeypatch.undo()
    with pytest.raises(UserError, match="question for the model's judgement is empty"):
        lively.search_batch(None, ["A"], SearchOptions("best-of-n", scorer="judgement", question=" "))


def test_bad_calls(lively):
    assert lively.search_batch(None, [], SearchOptions()) == []
    with pytest.raises(UserError, match="there are 1 seeds for 2 prompts"):
        lively.search_batch(None, ["A", "B"], SearchOptions(), seeds=[1])
    with pytest.raises(UserError, match="leave no room for the four stages"):
        lively.search_batch(None, ["A"], search_options(max_new_tokens=20))


def test_pieces_join_to_what_is_found(lively):
    options = search_options("stage-beam", temperature=2.0, **SMALL)
    pixels, prompts = lively.preprocess([picture(0)]), turns(lively, QUESTIONS[:1])
    start = lively.prefill(pixels, [lively.tokenize(prompts[0])])
    pieces = list(lively.new_search(options).decided(*start, "7", prompts[0]))
    found = lively.search_batch(pixels, prompts, options, seeds=[7])
    assert "".join(pieces) == found[0].text
    assert len(pieces) >= 4 and re.match("<SUMMARY>", pieces[0])
