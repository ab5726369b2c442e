"""Parity of an export: the same questions, answered greedily by the model and by what was written of it.

The questions are made by code and the same every time: rendered scenes, several questions about each, prompts of
different lengths, and some questions without a picture. Two answers are equal when all their tokens are. Where two
tokens are as good as equally likely (:data:`TIE`), rounding decides between them; such an answer counts as a tie.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cobra.demo.questions import KINDS, ask
from cobra.demo.scenes import random_scene, render
from cobra.models.generation.options import GenerationOptions
from cobra.models.vlms import CobraVLM, as_turn

MAX_NEW_TOKENS = 96
# Logits of one model in two programs differ by about 1e-5 in fp32; the best two tokens hardly ever by less than this.
TIE = 1e-3
_PICTURES = 16
# Every so many questions one has no picture.
_TEXT_ONLY = 8
# Rows that are answered at once.
_BATCH = 16
_BEFORE = ("", "Look closely. ", "Please think step by step about this picture before you answer the question: ")


@dataclass(frozen=True)
class Question:
    """One question, about a picture or none."""

    picture: Image.Image | None
    text: str


@dataclass
class Answer:
    """A greedy answer.

    ids: Its tokens, the end token included, at most :data:`MAX_NEW_TOKENS`.
    first: Scores of the first token over the padded vocabulary (vocabulary,), fp32; None where a runtime hides them.
    logits: Score of each token of the answer; empty where a runtime hides them.
    """

    ids: list[int]
    first: Tensor | None = None
    logits: list[float] = field(default_factory=list)


def parity_questions(count: int) -> list[Question]:
    """Return the first of the questions, which follow from their number alone."""
    rng = random.Random("parity")
    scenes = [random_scene(rng, "held-out") for _ in range(_PICTURES)]
    pictures = [render(scene) for scene in scenes]
    questions: list[Question] = []
    while len(questions) < count:
        number = len(questions)
        exchange = ask(rng, scenes[number % _PICTURES], rng.choice(tuple(KINDS)))
        if exchange is not None:
            picture = None if number % _TEXT_ONLY == _TEXT_ONLY - 1 else pictures[number % _PICTURES]
            questions.append(Question(picture, rng.choice(_BEFORE) + exchange.question))
    return questions


def prove_answers(
    vlm: CobraVLM, answer: Callable[[Sequence[Question]], Sequence[Answer | None]], count: int, share: float = 1.0
) -> dict[str, Any]:
    """Ask the model and a runtime the same questions and compare the tokens.

    Args:
        vlm: The model.
        answer: Answers of the runtime, greedy, in the order of the questions; None for one that it cannot be asked.
        count: Number of questions.
        share: Share of the answers that must be equal, ties aside.

    Returns:
        The content of `parity.json`.
    """
    questions = parity_questions(count)
    there = list(answer(questions))
    asked = [number for number, each in enumerate(there) if each is not None]
    here = dict(zip(asked, answers_of(vlm, [questions[number] for number in asked]), strict=True))
    differences: list[dict[str, Any]] = []
    gaps, ties = [], 0
    for number in asked:
        theirs, ours = there[number], here[number]
        assert theirs is not None
        if theirs.first is not None and ours.first is not None:
            gaps.append(float((theirs.first - ours.first).abs().max()))
        if theirs.ids != ours.ids:
            difference = _difference(vlm, questions[number], ours, theirs)
            ties += difference["tie"]
            differences.append({"question": number, "text": questions[number].text} | difference)
    equal = len(asked) - len(differences)
    # Ties, which say little, come last.
    differences.sort(key=lambda each: bool(each["tie"]))
    return {
        "passed": bool(asked) and equal + ties >= share * len(asked),
        "compared": f"greedy answers of at most {MAX_NEW_TOKENS} tokens, token by token",
        "questions": len(asked),
        "left_out": len(there) - len(asked),
        "equal": equal,
        "ties": ties,
        "required_share": share,
        "largest_difference_of_first_logits": max(gaps, default=None),
        "first_difference": differences[0] if differences else None,
    }


@torch.no_grad()
def answers_of(vlm: CobraVLM, questions: Sequence[Question]) -> list[Answer]:
    """Answer questions greedily with this package; their `logits` are left empty."""
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS)
    answers: dict[int, Answer] = {}
    for numbers in batches(questions):
        part = [questions[number] for number in numbers]
        prompts = [vlm.tokenize(as_turn(vlm, each.text)) for each in part]
        pictures = [each.picture for each in part if each.picture is not None]
        pixels = vlm.preprocess(pictures) if pictures else None
        state, scores = vlm.prefill(pixels, prompts)
        written = vlm.generate_batch_ids(pixels, prompts, options)
        answers |= {
            number: Answer(ids, first) for number, ids, first in zip(numbers, written, scores.cpu(), strict=True)
        }
    return [answers[number] for number in range(len(questions))]


def batches(questions: Sequence[Question]) -> list[list[int]]:
    """Return the numbers of the questions in batches, those with a picture apart from those without."""
    kinds: list[list[int]] = [[], []]
    for number, question in enumerate(questions):
        kinds[question.picture is None].append(number)
    return [kind[start : start + _BATCH] for kind in kinds for start in range(0, len(kind), _BATCH)]


def _difference(vlm: CobraVLM, question: Question, ours: Answer, theirs: Answer) -> dict[str, Any]:
    """Return where two answers part: both tokens there, and the logits that each side gives."""
    pairs = enumerate(zip(ours.ids, theirs.ids, strict=False))
    place = next((index for index, (a, b) in pairs if a != b), min(len(ours.ids), len(theirs.ids)))
    tokens = {"here": ours.ids[place : place + 1], "there": theirs.ids[place : place + 1]}
    pixels = None if question.picture is None else vlm.preprocess([question.picture])
    prompt = vlm.tokenize(as_turn(vlm, question.text))
    scores = vlm.prefill(pixels, [prompt + ours.ids[:place]])[1][0]
    logits = {side: float(scores[ids[0]]) if ids else None for side, ids in tokens.items()}
    gap = None if None in logits.values() else abs(logits["here"] - logits["there"])  # type: ignore[operator]
    return {
        "position": place,
        "tokens": tokens,
        "texts": {"here": vlm.decode(ours.ids), "there": vlm.decode(theirs.ids)},
        "logits_here": logits,
        "logit_there": theirs.logits[place] if place < len(theirs.logits) else None,
        "tie": gap is not None and gap < TIE,
    }
