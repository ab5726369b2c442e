"""Options of an answer: how its tokens are chosen, and how it is searched for; importable without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from cobra.util.errors import UserError, check_known

if TYPE_CHECKING:
    import torch

Method = TypeVar("Method", bound=Callable[..., Any])

KINDS = ("none", "best-of-n", "vote", "stage-beam")

LIKELIHOOD = "likelihood"
JUDGEMENT = "judgement"
SCORERS = (LIKELIHOOD, JUDGEMENT)

JUDGEMENT_QUESTION = "Check what you have written against the image. Is it right as far as it goes? Answer Yes or No."

# The tokens of all branches are kept to the end, and no limit of memory counts them: 512 of so many take 75 MB.
MAX_BEAMS = 4096


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen and when to stop; the fields are the keyword arguments of `generate`."""

    max_new_tokens: int | None = None
    """Tokens of text to write; 512 where neither this nor `max_length` is given."""
    max_length: int | None = None
    """Tokens of prompt and answer together; image patches are not counted."""
    do_sample: bool = False
    """Sample instead of taking the best token."""
    temperature: float = 1.0
    """Divides the scores before sampling."""
    top_k: int = 0
    """Sample among the k best; 0 is all."""
    top_p: float = 1.0
    """Sample among the smallest set of best tokens whose probability exceeds this; 1.0 is all."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the best (arXiv 2407.01082); 0.0 is all."""
    repetition_penalty: float = 1.0
    """Scores of text already in prompt or answer are divided (positive) or multiplied (negative) by this."""
    eos_token_id: int | None = None
    """Token that ends an answer, kept in the ids; None is the tokenizer's."""
    stop_strings: Sequence[str] = ()
    """Texts after which an answer ends; the token that completes one is kept."""
    generator: "torch.Generator | None" = None
    """Source of randomness: one number is taken from it for a batch; None is torch's."""
    seeds: Sequence[int] | None = None
    """A seed for each prompt, in place of the generator: its sample then depends on it, the prompt and the options
    alone, and not on the rest of the batch."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", *_SAMPLING):
            if not isinstance(value := getattr(self, name), int | float | None):
                raise UserError(f"{name} is {value!r}, expected a number")
        checks = {
            "max_new_tokens": (self.max_new_tokens is None or self.max_new_tokens > 0, "at least 1"),
            "max_length": (self.max_length is None or self.max_length > 0, "at least 1"),
            "temperature": (self.temperature > 0, "positive; do_sample=False takes the best token"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "positive"),
            "stop_strings": (not isinstance(self.stop_strings, str) and all(self.stop_strings), "a list of texts"),
        }
        for name, (is_good, expected) in checks.items():
            if not is_good:
                raise UserError(f"{name} is {getattr(self, name)!r} and must be {expected}")

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> "GenerationOptions":
        """Build options from keyword arguments.

        Raises:
            UserError: An argument is unknown (the known ones are listed) or out of its range.
        """
        options = {name: value for name, value in kwargs.items() if name != "use_cache"}
        _check_names(cls, options, "generate")
        return cls(**options)

    def budget(self, prompt_length: int) -> int:
        """Return how many tokens may follow a prompt of that length."""
        left = None if self.max_length is None else max(self.max_length - prompt_length, 0)
        return min((limit for limit in (self.max_new_tokens, left) if limit is not None), default=512)


# Options of how tokens are drawn; a search takes all but the last.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

SEARCH_SAMPLING = GenerationOptions(max_new_tokens=512, do_sample=True, temperature=0.6, top_p=0.9)
"""Default sampling of a search: temperature and top_p are those of LLaVA-CoT (arXiv 2411.10440)."""

# Options of `GenerationOptions` that a search takes.
_SEARCHED = ("max_new_tokens", "do_sample", *_SAMPLING[:-1])


@dataclass(frozen=True)
class SearchOptions:
    """How an answer is searched for."""

    kind: str = "none"
    """`none`: the likeliest token at every step. `best-of-n`: the best-scored of N sampled answers. `vote`: the
    CONCLUSION that most of N share, ties going to the best-scored answer. `stage-beam`: N branches of every stage."""
    beams: int = 4
    """Branches of each prompt, N; at every stage in `stage-beam`, shared out among those that were kept."""
    sampling: GenerationOptions = SEARCH_SAMPLING
    """How tokens are chosen, and how many an answer may have, tags included. The kind decides on `do_sample`."""
    keep: int = 1
    """Branches that `stage-beam` keeps after every stage, no two of them alike."""
    scorer: str = LIKELIHOOD
    """`likelihood`: the mean log-likelihood of the chosen tokens. `judgement`: the model's probability of Yes against
    No to `question`. A function given to the search takes its place."""
    guard: bool | None = None
    """Make the four stages come in order, filled and closed. None does so unless the model is as it was released, which
    has not learned them."""
    stage_tokens: int = 256
    """Tokens of one stage's text at most, with the guard."""
    question: str = JUDGEMENT_QUESTION
    """Question that the scorer `judgement` puts after every branch."""
    memory: float | None = None
    """GiB that states and scores of the branches may take; None is four fifths of what is free. Branches that do not
    fit are written after the others, with the same answers."""

    def __post_init__(self) -> None:
        check_known(self.kind, KINDS, "the search")
        check_known(self.scorer, SCORERS, "the scorer")
        if not 1 <= self.keep <= self.beams:
            raise UserError(
                f"the search has {self.beams} branches and is to keep {self.keep}: both must be at least 1, and no "
                "more can be kept than there are"
            )
        if self.beams > MAX_BEAMS:
            raise UserError(
                f"the search has {self.beams:,} branches of each prompt, more than the {MAX_BEAMS:,} that it can "
                "remember: give fewer (beams)"
            )
        if self.memory is not None and not self.memory > 0:
            raise UserError(f"the memory of the search is {self.memory} GiB, expected a number above 0")
        for field in fields(self.sampling):
            value = getattr(self.sampling, field.name)
            if field.name not in _SEARCHED and value != field.default:
                raise UserError(f"a search does not know {field.name}, and {value} is given: leave it out")
        object.__setattr__(self, "sampling", replace(self.sampling, do_sample=self.kind != "none"))

    @property
    def width(self) -> int:
        """Branches of each prompt that are written at a time."""
        return 1 if self.kind == "none" else self.beams

    @property
    def kept(self) -> int:
        """Branches of each prompt that a round leaves."""
        return self.keep if self.kind == "stage-beam" else self.width


@dataclass
class AnswerOptions:
    """How an answer is written or searched for: keyword arguments of `ask`, and flags of the programs."""

    do_sample: bool = False
    """Sample instead of taking the best token at every step; a search always samples."""
    temperature: float | None = None
    """Divisor of the scores before sampling. Default: 1.0, in a search 0.6."""
    top_k: int = 0
    """Sample among the k best tokens; 0 is all."""
    top_p: float | None = None
    """Sample among the smallest set of best tokens whose probability exceeds this. Default: 1.0, in a search 0.9."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the best; 0.0 is all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that are in prompt or answer already; 1.0 is none. A search takes none."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    seed: int | None = None
    """Seed of sampling; every answer starts from it."""
    search: str = "none"
    """Search for the answer: none, best-of-n, vote (the CONCLUSION that most share) or stage-beam (the best of several
    at every stage)."""
    beams: int = 4
    """Answers, or branches of each stage for stage-beam, that a search chooses from."""

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> "AnswerOptions":
        """Build options from keyword arguments of `ask`; a UserError where one is unknown, with the known ones."""
        _check_names(cls, kwargs, "ask")
        return cls(**kwargs)

    def options(self, search: str | None = None) -> GenerationOptions | SearchOptions:
        """Return the options of an answer, `search` in place of the field; a UserError where they do not go together.

        Those of a search have no seed: :meth:`CobraVLM.search_batch` takes it.
        """
        kind = self.search if search is None else search
        names = ("max_new_tokens", "do_sample", *_SAMPLING)
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if kind == "none":
            return GenerationOptions(**given, seeds=None if self.seed is None else [self.seed])
        return SearchOptions(kind, self.beams, replace(SEARCH_SAMPLING, **given))

    @property
    def ignored(self) -> list[str]:
        """Names of the options that choose among samples, where none is drawn: they change nothing then."""
        changed = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return [] if self.do_sample or self.search != "none" else [name for name, value in changed.items() if value]


class SampleArguments(TypedDict, total=False):
    """Keyword arguments of `ask` and `generate` alike; see :class:`AnswerOptions`."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


class AskArguments(SampleArguments, total=False):
    """Keyword arguments of `ask`, for type checkers: the fields of :class:`AnswerOptions`."""

    seed: int | None
    search: str
    beams: int


class GenerateArguments(SampleArguments, total=False):
    """Keyword arguments of `generate`, for type checkers: the fields of :class:`GenerationOptions`."""

    max_length: int | None
    eos_token_id: int | None
    stop_strings: Sequence[str]
    generator: "torch.Generator | None"
    seeds: Sequence[int] | None
    use_cache: bool
    """Accepted for compatibility: the state is always kept."""


def takes(options: type) -> Callable[[Method], Method]:
    """Show the fields of a dataclass in a method's signature, for help and completion, in place of its `**kwargs`."""

    def name_them(method: Method) -> Method:
        own = signature(method)
        kept = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        named = [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(options)
        ]
        method.__dict__["__signature__"] = own.replace(parameters=[*kept, *named])
        return method

    return name_them


def _check_names(options: type, kwargs: Mapping[str, Any], method: str) -> None:
    check_known(list(kwargs), [field.name for field in fields(options)], f"the argument of {method}")
