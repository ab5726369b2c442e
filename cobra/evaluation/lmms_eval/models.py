"""The model `cobra` of lmms-eval: plain requests and chats, answered in batches, a CONCLUSION instead of its stages.

What lmms-eval compares with a label is the CONCLUSION of a four-stage answer, and all of any other. The answer as it
was written is in the log of its sample, as `raw` among the `token_counts`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from inspect import signature
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

import cobra
from cobra.evaluation.lmms_eval.questions import Question, Settings, cut, from_chat, one_image, seed_of, stops_of
from cobra.models.generation.options import AnswerOptions
from cobra.models.vlms import as_turn
from cobra.reasoning.trace import given_conclusion
from cobra.util.errors import UserError, check_known
from cobra.util.tokens import read_hf_token


@dataclass
class AnswerCounts(TokenCounts):
    """Tokens of an answer and, for the log, the answer as it was written: no other field of a sample takes anything."""

    raw: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what the sample's log has of it."""
        return {**super().to_dict(), "raw": self.raw}


class CobraSimple(lmms):
    """A model of this package for requests of a text and an image."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "cobra+3b",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        hf_token: str = ".hf_token",
        max_new_tokens: int | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Load a model; the arguments are those of `--model_args` and of the flags of the same names.

        Args:
            pretrained: A run directory, a checkpoint file in one, or a model id.
            batch_size: Requests answered at once.
            device: `cuda`, `mps` or `cpu`; None is the best one. Of several processes each takes its own GPU.
            dtype: `fp32`, `bf16` or `fp16`.
            hf_token: Environment variable or file that holds the hub's token.
            max_new_tokens: Most tokens of an answer in place of the tasks' limits. By default the limit of a task is
                kept for a model as it was released, and is 512 at least for one that has learned the four stages.
            max_batch_size: Accepted for lmms-eval, which gives it always; there is no search for a batch size.
            **options: Fields of :class:`cobra.models.generation.options.AnswerOptions`, such as `search`, `beams` and
                `seed`. What they say goes before what a task asks for.

        Raises:
            UserError: An argument is unknown or of another kind, or the model cannot be loaded.
        """
        super().__init__()
        own = [name for name in signature(CobraSimple).parameters if name not in ("max_batch_size", "options")]
        check_known(
            list(options), own + [field.name for field in fields(AnswerOptions)], "the argument in --model_args"
        )
        given = AnswerOptions(**options)
        self.batch_size_per_gpu = _whole_number("batch_size", batch_size)
        limit = None if max_new_tokens is None else _whole_number("max_new_tokens", max_new_tokens)
        # Told of before a model is loaded.
        given.options()
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1 and device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        # A number to lmms-eval is one that looks like it: a run may be called 7.
        self._vlm = cobra.load(str(pretrained), hf_token=read_hf_token(hf_token), device=device, dtype=dtype)
        self.device = self._vlm.device
        self._settings = Settings(given, options.keys(), limit, not self._vlm.is_stock)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer requests, in their order.

        All of them are looked at first, so that one that cannot be answered does not come to light after hours.

        Raises:
            UserError: One has several images, or other media, or a prompt is too long for the model.
        """
        times: Counter[tuple[Any, ...]] = Counter()
        questions = []
        for request in tqdm(requests, desc="Reading the requests", disable=self.rank != 0):
            key = (request.task_name, request.doc_id, request.idx)
            questions.append(self._question(request, times[key]))
            times[key] += 1
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(questions), desc="Answering", disable=self.rank != 0) as progress:
            for rows in self._batches(questions):
                batch = [questions[row] for row in rows]
                answers |= zip(rows, map(self._result, batch, self._answer(batch)), strict=True)
                progress.update(len(rows))
        return [answers[row] for row in range(len(questions))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Refuse tasks whose later rounds bring further images."""
        raise NotImplementedError(
            "tasks of several rounds (generate_until_multi_round) show further images, and the model reads one: leave "
            "them out of --tasks"
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks that choose by likelihood."""
        raise NotImplementedError(
            "lmms-eval 0.7.3 turns likelihoods into text and then fails, with any model, so that its tasks of the type "
            "multiple_choice cannot be run: take one that is answered, such as seedbench for seedbench_ppl"
        )

    def _question(self, request: Instance, repeat: int) -> Question:
        """Return a request as a question, once its image was counted."""
        text, arguments, doc_to_visual, doc_id, task, split = request.args

        def visuals() -> list[Any]:
            return one_image(doc_to_visual(self.task_dict[task][split][doc_id]), _where(request))

        return self._asked(as_turn(self._vlm, text), text, visuals, bool(visuals()), arguments, request, repeat)

    def _asked(
        self, prompt: str, text: str, visuals: Any, has_image: bool, arguments: Any, request: Instance, repeat: int
    ) -> Question:
        # Raises where it is too long.
        self._vlm.tokenize(prompt)
        options = self._settings.options(arguments, _where(request))
        seed = seed_of(options.seed, request.args[3], repeat)
        return Question(prompt, text, visuals, has_image, options, stops_of(arguments.get("until")), seed)

    def _batches(self, questions: Sequence[Question]) -> Iterator[list[int]]:
        """Yield the rows of questions that are answered alike, those of like length together."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault((question.has_image, *astuple(question.options)), []).append(row)
        for rows in groups.values():
            rows.sort(key=lambda row: len(questions[row].prompt))
            for start in range(0, len(rows), self.batch_size_per_gpu):
                yield rows[start : start + self.batch_size_per_gpu]

    def _answer(self, batch: Sequence[Question]) -> list[str]:
        first = batch[0]
        pixels = self._vlm.preprocess([question.visuals()[0] for question in batch]) if first.has_image else None
        prompts, texts, seeds = zip(*((each.prompt, each.text, each.seed) for each in batch), strict=True)
        return self._vlm.answer_prompts(prompts, texts, first.options, pixels, seeds=seeds)

    def _result(self, question: Question, raw: str) -> GenerationResult:
        text = cut(given_conclusion(raw)[0], question.stops)
        read, written, returned = (len(self._vlm.encode(each)) for each in (question.prompt, raw, text))
        return GenerationResult(text, AnswerCounts(read, written, max(written - returned, 0), raw))


class CobraChat(CobraSimple):
    """The same model for requests that are messages."""

    is_simple = False

    def _question(self, request: Instance, repeat: int) -> Question:
        """Return a request as a question, once its image was counted."""
        _, doc_to_messages, arguments, doc_id, task, split = request.args
        where = _where(request)

        def read() -> tuple[str, str, list[Any]]:
            prompt, text, images = from_chat(self._vlm, doc_to_messages(self.task_dict[task][split][doc_id]), where)
            return prompt, text, one_image(images, where)

        prompt, text, images = read()
        return self._asked(prompt, text, lambda: read()[2], bool(images), arguments, request, repeat)


def _where(request: Instance) -> str:
    """Return the document and the task of a request, for errors."""
    doc_id, task = request.args[3:5]
    return f"document {doc_id} of the task {task}"


def _whole_number(name: str, value: Any) -> int:
    """Return an argument as a number from 1, or raise a UserError."""
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the {name} is {value!r}, expected a whole number, such as 8") from error
    if number < 1:
        raise UserError(f"the {name} is {number} and must be at least 1")
    return number
