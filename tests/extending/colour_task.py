"""A task of `benchmark.py` from outside the package: `--task colours --image_dir FOLDER` asks for the colour."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from cobra.evaluation.benchmark import TASKS
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import PictureFolder
from cobra.evaluation.metrics.base import MeanMetric
from cobra.evaluation.report.results import VariantResult
from cobra.evaluation.responses.protocol import Answer
from cobra.evaluation.tasks.base import Questions, Scores, Task
from cobra.util.errors import UserError


class ColourTask(Task):
    """Pictures named after their colour, and a question about it."""

    def ask(self) -> Questions:
        """Return a question for each picture of the folder."""
        folder = self.config.image_dir
        if folder is None:
            raise UserError("--image_dir is missing: the folder of pictures that are named after their colour")
        names = sorted(path.name for path in folder.glob("*.png"))
        self._images = [CaptionedImage(name, name, (name.removesuffix(".png"),)) for name in names]
        return Questions(self._images, PictureFolder(folder), {}, tokenizer="words", prompt="Which colour?")

    def score(self, answers: Mapping[str, Sequence[Answer]], console: Console) -> Scores:
        """Count the answers that name the colour."""
        variants = {}
        for variant, given in answers.items():
            texts = [answer.scored for answer in given]
            right = [image.references[0] in text for image, text in zip(self._images, texts, strict=True)]
            variants[variant] = VariantResult(texts, {"right": MeanMetric(right, "right colours")}, given)
        return Scores(variants, floors={})


TASKS["colours"] = ColourTask
