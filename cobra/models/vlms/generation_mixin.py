"""Generation for vision-language models: answers prompts about images."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase

from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.backbones.vision import PixelValues, VisionBackbone
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.generation.decoder import read_rows, threads_for
from cobra.models.generation.generate import generate_ids, stops_after, text_pieces
from cobra.models.generation.options import JUDGEMENT, GenerateArguments, GenerationOptions, SearchOptions, takes
from cobra.models.generation.sampling import row_seeds
from cobra.models.generation.scorers import FunctionScorer, LikelihoodScorer, TextScorer, judgement_scorer
from cobra.models.generation.search import Search, SearchResult
from cobra.models.generation.stage_guard import TokenTexts
from cobra.models.mamba import MambaState
from cobra.util.errors import UserError, check_known
from cobra.util.pictures import ImageLike, as_picture, is_picture
from cobra.util.rgb import to_rgb

logger = logging.getLogger(__name__)

# Positions that a CPU reads at once: 16 images of 729 patches fall out of its cache, and together take 1.6 times as
# long as two by two.
_CPU_POSITIONS = 2048

# Answers whose first token alone tells them, for generate_batch's probabilities.
_ANSWERS = ("True", "False", "Yes", "No", *(chr(letter) for letter in range(ord("A"), ord("Z") + 1)))


def single_token_answers(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the token id of every answer (True, False, Yes, No, A to Z) that is a single token."""
    encoded = {answer: tokenizer.encode(answer, add_special_tokens=False) for answer in _ANSWERS}
    return {answer: ids[0] for answer, ids in encoded.items() if len(ids) == 1}


def check_texts(texts: Sequence[str]) -> None:
    """Raise a UserError where prompts or questions are not a list of texts."""
    if isinstance(texts, str):
        raise UserError(f"one text is given and a list of them is expected: [{texts[:40]!r}]")
    for text in texts if isinstance(texts, Sequence) else [texts]:
        if not isinstance(text, str):
            raise UserError(
                f"the text is of type {type(text).__name__}: expected a str. The image comes first, then the text; "
                "vlm.ask(images, questions) takes lists of both"
            )


class TextTooLongError(UserError):
    """A text has more tokens than the model reads.

    Attributes:
        size: How long it is, for messages: `7,001 tokens`.
    """

    def __init__(self, size: str, most: int) -> None:
        super().__init__(f"the prompt has {size}, and the model reads {most:,} at most: shorten it")
        self.size = size


@cache
def _tell_bare_prompt(header: str) -> None:
    logger.warning(
        "a prompt has no %s, which the model has learned to answer after, so the answer may be empty or nonsense: use "
        "vlm.ask(image, question), which makes the prompt, or as_turn(vlm, question) of cobra.models.vlms",
        header,
    )


class GenerationMixin:
    """Generation for a model with the attributes named here; :class:`CobraVLM` is one."""

    vision_backbone: VisionBackbone
    llm_backbone: MambaLLMBackbone
    string2idx: dict[str, int]
    is_stock: bool

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        return self.llm_backbone.llm.backbone.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the language model's matrices."""
        return self.llm_backbone.llm.backbone.embedding.weight.dtype

    def encode_images(self, pixel_values: PixelValues) -> Tensor:
        """Return image embeddings (batch, patches, d_model) of pixels."""
        raise NotImplementedError

    def get_prompt_builder(self, system_prompt: str | None = None) -> PromptBuilder:
        """Return a new conversation in the language model's format."""
        return self.llm_backbone.prompt_builder_fn(model_family="cobra", system_prompt=system_prompt)

    def preprocess(self, images: Iterable[ImageLike]) -> PixelValues:
        """Return the pixels of pictures of any form and mode, stacked on the model's device and, if several, by tower.

        Raises:
            UserError: There is no list, or none in it; or see :func:`as_picture`.
        """
        several = [] if is_picture(images) else images
        pixels = [self.vision_backbone.image_transform(to_rgb(as_picture(image))) for image in several]
        if not pixels:
            raise UserError("preprocess takes a list of one or more images: vlm.preprocess([image])")
        return map_pixels(default_collate(pixels), lambda value: value.to(self.device))

    @torch.no_grad()
    def read_images(self, pixel_values: PixelValues) -> MambaState:
        """Read images (see :meth:`preprocess`) once for any number of prompts: the `prefix` of the other methods.

        Returns:
            The state after each image's patches, of constant size whatever their number. Prompts read after it get
            the answers that they get with the pixels, up to rounding.
        """
        llm = self.llm_backbone.llm
        with threads_for(llm):
            patches = self.encode_images(pixel_values).to(self.dtype)
            count, positions = patches.shape[:2]
            state = MambaState.zeros(llm.config, count, self.device)
            rows = max(1, _CPU_POSITIONS // positions) if self.device.type == "cpu" else count
            for part in (slice(start, start + rows) for start in range(0, count, rows)):
                llm(patches[part], state.rows(part))
            return state

    @torch.no_grad()
    def prefill(
        self, pixel_values: PixelValues | None, prompts: Sequence[Sequence[int]], prefix: MambaState | None = None
    ) -> tuple[MambaState, Tensor]:
        """Read a batch of prompts of any lengths.

        Args:
            pixel_values: Pixels with a row for each prompt, or None for text only, or where there is a `prefix`.
            prompts: Text ids.
            prefix: State before each prompt, a row for each (see :meth:`read_images`); it stays as it is.

        Returns:
            The state after each prompt, and the scores (batch, vocabulary) of each first new token in fp32.

        Raises:
            UserError: There are not as many images as prompts, a prompt without pixels is empty, or the prefix is not
                for them.
        """
        if pixel_values is not None:
            count = self._count_images(pixel_values)
            if count != len(prompts):
                raise UserError(f"there are {count} images for {len(prompts)} prompts: give an image for every prompt")
        empty = [str(index) for index, prompt in enumerate(prompts) if not prompt]
        if empty and pixel_values is None:
            raise UserError(f"prompt {', '.join(empty)} is empty: without an image there is nothing to go on from")
        llm = self.llm_backbone.llm
        if prefix is not None:
            self._check_prefix(prefix, len(prompts), pixel_values)
        # All of it: a thread that has helped spins for some milliseconds before it sleeps, on a core that others want.
        with threads_for(llm):
            patches = None if pixel_values is None else self.encode_images(pixel_values)
            state = MambaState.zeros(llm.config, len(prompts), self.device) if prefix is None else prefix.clone()
            return state, read_rows(llm, prompts, state, patches)

    def _count_images(self, pixel_values: PixelValues) -> int:
        """Return the number of images; raise a UserError where there are not the pixels that the towers take."""
        values = pixel_values if isinstance(pixel_values, dict) else {"": pixel_values}
        if (
            not all(isinstance(value, Tensor) for value in values.values())
            or (isinstance(pixel_values, dict) or len(self.vision_backbone.towers) > 1)
            and set(values) != {*self.vision_backbone.tower_names}
        ):
            names = " and ".join(name for name in self.vision_backbone.tower_names if name)
            raise UserError(
                f"the pixel values are a {type(pixel_values).__name__}, expected a tensor (images, 3, height, width)"
                f"{f' for each of {names}' if names else ''}, as vlm.preprocess([image, ...]) returns; "
                "vlm.ask(images, questions) takes images as they are"
            )
        return len(next(iter(values.values())))

    def _check_prefix(self, prefix: MambaState, count: int, pixel_values: PixelValues | None) -> None:
        """Raise a UserError where `count` prompts cannot go on from a prefix."""
        if pixel_values is not None:
            raise UserError("a prefix and pixels were given: the images are in the prefix, so leave the pixels out")
        if prefix.batch_size != count:
            raise UserError(
                f"the prefix is of {prefix.batch_size} images and there are {count} prompts: give a row for every "
                "prompt, with prefix.select(rows) where rows are to be repeated or left out"
            )
        prefix.check(self.llm_backbone.llm.config, count)
        if prefix.device != self.device:
            raise UserError(f"the prefix is on {prefix.device} and the model on {self.device}: read it again")

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a prompt.

        Raises:
            TextTooLongError: There are more than :attr:`max_text_length`. Cut on the right, as training cuts its
                examples, a prompt would lose the header after which the model answers.
        """
        most = self.max_text_length
        # To count the tokens of a text takes a second and 185 MB for every million characters.
        if len(text) > self.max_text_characters:
            raise TextTooLongError(f"{len(text):,} characters, more than {most:,} tokens", most)
        ids = self.encode(text)
        if len(ids) > most:
            raise TextTooLongError(f"{len(ids):,} tokens", most)
        return ids

    def _tokenize_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts; tell the user once if one of them is not in the model's prompt format."""
        check_texts(texts)
        header = self.get_prompt_builder().get_potential_prompt("").split()[-1]
        if any(text and header not in text for text in texts):
            _tell_bare_prompt(header)
        return [self.tokenize(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, however long."""
        return list(self.llm_backbone.tokenizer(text, truncation=False, verbose=False).input_ids)

    @property
    def max_text_length(self) -> int:
        """Tokens of text that the model reads at most, image patches not counted."""
        return int(self.llm_backbone.tokenizer.model_max_length)

    @property
    def max_text_characters(self) -> int:
        """Characters of :attr:`max_text_length` tokens at most: no longer text can be read."""
        return self.max_text_length * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        # In bytes, as GPT-NeoX's kind writes its tokens, and no character has less than one. Composed characters do
        # (NFC), the most 4 for 3 bytes, but no token of them is nearly as long as those of dashes and blanks.
        return max(map(len, self.llm_backbone.tokenizer.get_vocab()))

    @takes(GenerationOptions)
    def generate(self, image: ImageLike | None, prompt_text: str, **kwargs: Unpack[GenerateArguments]) -> str:
        """Answer a prompt about an image; return the answer alone, without special tokens. For a question see `ask`.

        Args:
            image: The picture in any form (see :func:`as_picture`), or None for text only.
            prompt_text: A prompt from :meth:`get_prompt_builder`, or a question by :func:`as_turn`.
            **kwargs: See :class:`GenerationOptions`.

        Raises:
            UserError: As :meth:`generate_batch` and :meth:`preprocess`.
        """
        check_texts([prompt_text])
        pixel_values = None if image is None else self.preprocess([image])
        return self.generate_batch(pixel_values, [prompt_text], **kwargs)[0]

    @takes(GenerationOptions)
    def stream(self, image: ImageLike | None, prompt_text: str, **kwargs: Unpack[GenerateArguments]) -> Iterator[str]:
        """Like :meth:`generate`, yielding the text piece by piece as it is written."""
        options, prompts = GenerationOptions.from_kwargs(kwargs), self._tokenize_prompts([prompt_text])
        pixel_values = None if image is None else self.preprocess([image])
        steps = self._steps(*self.prefill(pixel_values, prompts), prompts, options)
        yield from text_pieces((token for [(_, token)] in steps), self.decode)

    @takes(GenerationOptions)
    def generate_batch(
        self,
        pixel_values: PixelValues | None,
        texts: Sequence[str],
        return_string_probabilities: Sequence[str] | None = None,
        prefix: MambaState | None = None,
        **kwargs: Unpack[GenerateArguments],
    ) -> Any:
        """Answer a batch of prompts, of any lengths, at once.

        Args:
            pixel_values: Pixels with a row for each prompt (see :meth:`preprocess`), or None for text only.
            texts: Prompts.
            return_string_probabilities: Single-token answers (keys of `string2idx`) whose probabilities as the first
                token, normalised among themselves, are wanted.
            prefix: In place of pixels, what :meth:`read_images` has read of them.
            **kwargs: See :class:`GenerationOptions`.

        Returns:
            The answers; with `return_string_probabilities` a pair of them and a list of probabilities for each.

        Raises:
            UserError: As :meth:`prefill`; or an answer is not a single token, or an argument unknown or out of range.
        """
        return_strings = list(return_string_probabilities or [])
        check_known(return_strings, self.string2idx, "the single-token answer")
        options = GenerationOptions.from_kwargs(kwargs)
        prompts = self._tokenize_prompts(texts)
        if not prompts:
            return ([], []) if return_strings else []
        state, scores = self.prefill(pixel_values, prompts, prefix)
        # Normalised among the answers alone: among all tokens they may be too unlikely for fp32.
        chosen = scores[:, [self.string2idx[answer] for answer in return_strings]].softmax(-1)
        answers = [self.decode(ids).strip() for ids in self._collect(state, scores, prompts, options)]
        return (answers, chosen.tolist()) if return_strings else answers

    def generate_batch_ids(
        self,
        pixel_values: PixelValues | None,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        prefix: MambaState | None = None,
    ) -> list[list[int]]:
        """Return the new ids of each prompt, the end token included; see :meth:`generate_batch`."""
        return self._collect(*self.prefill(pixel_values, prompts, prefix), prompts, options)

    def _collect(
        self, state: MambaState, scores: Tensor, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        with threads_for(self.llm_backbone.llm):
            for step in self._steps(state, scores, prompts, options):
                for row, token in step:
                    answers[row].append(token)
        return answers

    def _steps(
        self, state: MambaState, scores: Tensor, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Iterator[list[tuple[int, int]]]:
        end = self.llm_backbone.tokenizer.eos_token_id if options.eos_token_id is None else options.eos_token_id
        stop = stops_after(options.stop_strings, self.decode, len(prompts))
        return generate_ids(self.llm_backbone.llm, state, scores, prompts, options, int(end), stop)

    def search_batch(
        self,
        pixel_values: PixelValues | None,
        texts: Sequence[str],
        options: SearchOptions,
        generator: torch.Generator | None = None,
        prefix: MambaState | None = None,
        seeds: Sequence[int] | None = None,
        scorer: TextScorer | None = None,
        questions: Sequence[str] | None = None,
    ) -> list[SearchResult]:
        """Search for the best answer to every prompt; all prompts and branches are written together.

        Args:
            pixel_values: Pixels with a row for each prompt (see :meth:`preprocess`), or None for text only.
            texts: Prompts.
            options: How to search.
            generator: Source of randomness: one number is taken from it; None is torch's.
            prefix: In place of pixels, what :meth:`read_images` has read of them.
            seeds: In place of the generator, one for each prompt: what is found for it then depends on it, the prompt
                and the options alone.
            scorer: In place of the options' scorer, a function of the prompt's index and of the answer so far.
            questions: For a vote, what each prompt asks: the options that it lists are the same by letter and words.
                None reads them from the prompts.

        Raises:
            UserError: As :meth:`prefill` and :meth:`new_search`; or memory is too small, or seeds are not as prompts.
        """
        prompts = self._tokenize_prompts(texts)
        if not prompts:
            return []
        search = self.new_search(options, scorer)
        state, scores = self.prefill(pixel_values, prompts, prefix)
        return search.run(state, scores, row_seeds(seeds, len(texts), generator), questions or texts)

    def new_search(
        self, options: SearchOptions, scorer: TextScorer | None = None, between_steps: Callable[[], None] = lambda: None
    ) -> Search:
        """Return a search that goes on from states and scores of :meth:`prefill`; arguments as of :meth:`search_batch`.

        Raises:
            UserError: There is no room for the four stages, or the model cannot judge its answers.
        """
        llm, end = self.llm_backbone.llm, int(self.llm_backbone.tokenizer.eos_token_id)
        if options.guard is None:
            options = replace(options, guard=not self.is_stock)
        chosen = LikelihoodScorer()
        if scorer is not None:
            chosen = FunctionScorer(scorer, self.decode)
        elif options.scorer == JUDGEMENT:
            builder = self.get_prompt_builder()
            chosen = judgement_scorer(llm, self.encode, self.string2idx, builder, options.question)
        return Search(llm, TokenTexts(self.decode, self.encode), self.decode, end, chosen, options, between_steps)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self.llm_backbone.tokenizer.decode(list(ids), skip_special_tokens=True))
