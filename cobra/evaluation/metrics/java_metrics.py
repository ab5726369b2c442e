"""METEOR and SPICE, run as Java programs through pycocoevalcap where both are installed."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cobra.evaluation.metrics.base import Captions, MeanMetric, Metric, Metrics, References, Scorer, Scores
from cobra.util.errors import UserError
from cobra.util.files import package_folder

PACKAGE = "pycocoevalcap"

Texts = Sequence[str]
"""One caption for each image: its tokens between single spaces."""
Program = Callable[[Texts, Sequence[Sequence[str]]], Metric]
"""Scores texts against one or more references for each image."""

# METEOR 1.5's parameters for English (Denkowski and Lavie, 2014): weights of exact, stem, synonym and paraphrase
# matches; of precision in their harmonic mean; the fragmentation penalty's exponent and size; of content words.
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STATISTICS = 23


class MeteorMetric(Metric):
    """METEOR 1.5 from the counts that its program gives for each image.

    Of a corpus it is computed on the summed counts, as the program does; it is not the mean of the images' scores.
    """

    def __init__(self, statistics: Scores) -> None:
        """Take (N, 23) counts in the program's order.

        Words of the caption and of its best reference, function words of both; for exact, stem, synonym and paraphrase
        matches the matched content words of both and the matched function words of both; chunks, matched words of both.
        """
        self.label = "METEOR"
        # The program counts no chunk in a caption that equals its reference, and so sums none.
        equal = (statistics[:, :2] == statistics[:, 21:]).all(axis=1) & (statistics[:, 20] == 1)
        self.statistics = statistics.copy()
        self.statistics[equal, 20] = 0

    def from_sums(self, sums: Scores) -> Scores:
        """Combine precision, recall and fragmentation."""
        lengths, functions, chunks = sums[..., :2], sums[..., 2:4], sums[..., 20]
        stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)
        weighted = np.einsum("...smt,s->...mt", stages, _MATCH_WEIGHTS)
        hits = _DELTA * weighted[..., 0, :] + (1 - _DELTA) * weighted[..., 1, :]
        words = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
        shares = np.divide(hits, words, out=np.zeros_like(hits), where=words > 0)
        precision, recall = shares[..., 0], shares[..., 1]
        weight = _ALPHA * precision + (1 - _ALPHA) * recall
        mean = np.divide(precision * recall, weight, out=np.zeros_like(weight), where=weight > 0)
        matched = sums[..., 21:].sum(axis=-1) / 2
        fragmentation = np.divide(chunks, matched, out=np.zeros_like(matched), where=matched > 0)
        return mean * (1 - _GAMMA * fragmentation**_BETA)


@dataclass(frozen=True)
class JavaMetrics:
    """METEOR and SPICE as far as they run here; a maker of metrics."""

    programs: Mapping[str, Program]
    """Programs by metric: `meteor`, `spice`."""
    left_out: tuple[str, ...] = ()
    """Lines saying why a metric is left out."""

    def __call__(self, references: References) -> Scorer:
        """Make the metrics; scoring raises a UserError where a Java program fails."""
        # METEOR's protocol separates texts by three bars.
        alternatives = [list(map(_clean, tokens)) for tokens in references.tokens]

        def score(captions: Captions) -> Metrics:
            texts = list(map(_clean, captions.tokens))
            return {name: program(texts, alternatives) for name, program in self.programs.items()}

        return score


def find_java_metrics() -> JavaMetrics:
    """Return the metrics that run here; SPICE, which starts with few versions of Java, has scored one caption."""
    programs: dict[str, Program] = {}
    left_out: dict[str, list[str]] = {}
    for name, label, find in (("meteor", "METEOR", _find_meteor), ("spice", "SPICE", _find_spice)):
        try:
            programs[name] = find()
        except UserError as error:
            left_out.setdefault(str(error), []).append(label)
    lines = (f"{' and '.join(labels)} left out: {reason}" for reason, labels in left_out.items())
    return JavaMetrics(programs, tuple(lines))


def _clean(tokens: Sequence[str]) -> str:
    return " ".join(" ".join(tokens).replace("|||", "").split(" "))


def _package() -> Path:
    folder = package_folder(PACKAGE)
    if folder is None:
        raise UserError(f"{PACKAGE} is not installed (pip install 'cobra-vlm[java]')")
    # macOS has a `java` that only says where to get one.
    if shutil.which("java") is None or subprocess.run(["java", "-version"], capture_output=True).returncode:
        raise UserError("there is no Java (e.g. apt-get install default-jre-headless)")
    return folder


def _find_meteor() -> Program:
    folder = _package() / "meteor"

    def score(captions: Texts, references: Sequence[Sequence[str]]) -> Metric:
        lines = [" ||| ".join(["SCORE", *texts, text]) for text, texts in zip(captions, references, strict=True)]
        command = "java -Xmx2G -Dfile.encoding=UTF-8 -jar meteor-1.5.jar - - -stdio -l en -norm".split()
        done = subprocess.run(command, cwd=folder, input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8")
        rows = done.stdout.splitlines()
        if done.returncode or len(rows) != len(lines):
            last = next(filter(None, map(str.strip, reversed(done.stderr.splitlines()))), "it wrote nothing")
            raise UserError(f"METEOR's program failed ({last[:200]})")
        return MeteorMetric(np.array([row.split() for row in rows], dtype=np.float64).reshape(-1, _STATISTICS))

    return score


def _find_spice() -> Program:
    folder = _package() / "spice"
    if not any(folder.glob("lib/stanford-corenlp-*-models.jar")):
        raise UserError(f"its language models are not there (python -m {PACKAGE}.spice.get_stanford_models)")
    from pycocoevalcap.spice.spice import Spice

    def score(captions: Texts, references: Sequence[Sequence[str]]) -> Metric:
        try:
            _, rows = Spice().compute_score(
                dict(enumerate(map(list, references))), {index: [text] for index, text in enumerate(captions)}
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"SPICE's program failed ({error}); it was written for Java 8") from error
        # A caption without any object, attribute or relation has no score of its own.
        return MeanMetric(np.nan_to_num([row["All"]["f"] for row in rows]), "SPICE")

    score(["a dog on grass"], [["a dog runs on grass"]])
    return score
