"""The flags of the benchmark."""

from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.responses.protocol import MAX_NEW_TOKENS, resolve_prompt
from cobra.models.generation.search import SearchOptions
from cobra.util.errors import UserError, check_known
from cobra.util.home_paths import PathText
from cobra.util.torch_utils import resolve_device, resolve_dtype

CAPTIONS = "captions"
CONCLUSIONS = "llava-cot"
TASKS = (CAPTIONS, CONCLUSIONS)


@dataclass
class BenchmarkConfig:
    """Score captions of a model, or of any system's results file, against human ones.

    A model answers twice: at once, and after a scratchpad. With a baseline beside it that makes the four variants.
    """

    checkpoint: PathText | None = None
    """The model: a run directory, a .pt file in one, or a model id."""
    baseline_checkpoint: PathText | None = None
    """A model to compare it with, in the same forms."""
    task: str = CAPTIONS
    """`captions` scores captions of images; `llava-cot` scores the conclusions on held-out rows of LLaVA-CoT-100k."""
    coco_annotations: PathText | None = None
    """Captions: COCO's annotation file, Karpathy's dataset_coco.json, a JSON file of captions by file name, a folder
    with such a captions.json, or a data set (id on the hub, or folder of Parquet); by default what the data set
    coco-captions brings."""
    image_dir: Path | None = None
    """Folder of the images that the annotations name; by default that of coco-captions."""
    split: str | None = None
    """Of Karpathy's file (by default test) or of a data set."""
    image_ids: PathText | None = None
    """Keep these images alone: a file with ids or file names, or `karpathy-test`."""
    llava_cot_annotations: Path | None = None
    """Held-out rows of the task llava-cot; by default those that fine_tune/prepare_llava_cot.py left in data."""
    predictions: Path | None = None
    """Captions in COCO's results format, scored as they are; needs no checkpoint."""
    allow_missing: bool = False
    """Score the images that the predictions have captions for, where they lack some."""
    exclude_ids: Path | None = None
    """Leave out images that were trained on: coco_ids.json, a list of ids, or training rows. Without it the overlap
    is reported alone."""
    coco_instances: Path | None = None
    """COCO's instances file of the same images, for CHAIR: the share of objects that are not there."""
    similarity_model: PathText | None = None
    """Folder or hub id of a sentence-transformers model; by default the packaged all-MiniLM-L6-v2."""
    output_dir: Path = Path("runs/benchmark")
    """Folder of report.html, metrics.json, predictions/ and answers/; a run that was interrupted goes on there."""
    prompt: str = "seed"
    """The final prompt of all variants: `seed`, `lmms-eval`, `@path` of a UTF-8 file with the prompt, or its text."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Limit of an answer; a scratchpad's first pass has its own of 256."""
    max_images: int | None = None
    """Score a sample of so many images, always the same one; by default all."""
    batch_size: int = 8
    """Images answered at once."""
    search: str = "none"
    """How a final answer is searched for: `none` takes the likeliest token at every step, `best-of-n` and `vote` write
    several answers, `stage-beam` branches at every stage."""
    beams: int = 4
    """Answers, in stage-beam branches of every stage, that a search chooses from."""
    hf_token: PathText = ".hf_token"
    """Name of an environment variable or path of a file that holds the hub's token; only for closed repositories."""
    device: str | None = None
    """cuda, mps or cpu; by default the best at hand."""
    dtype: str | None = None
    """fp32, bf16 or fp16; by default fp32 on a CPU."""


# Flags that the task llava-cot has no use for.
_OF_CAPTIONS = (
    "coco_annotations",
    "split",
    "image_ids",
    "predictions",
    "exclude_ids",
    "coco_instances",
    "similarity_model",
)


def check_flags(config: BenchmarkConfig) -> None:
    """Raise a UserError where flags make no sense by themselves or together."""
    check_known(config.task, TASKS, "--task")
    if config.task == CONCLUSIONS:
        _check_conclusions(config)
    elif config.llava_cot_annotations is not None:
        raise UserError(f"--llava_cot_annotations is of another task: give --task {CONCLUSIONS} too")
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
    for name in ("max_new_tokens", "max_images", "batch_size", "beams"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value} and must be at least 1")
    SearchOptions(config.search, config.beams, max_new_tokens=config.max_new_tokens)
    resolve_dtype(config.dtype, resolve_device(config.device))


def _check_conclusions(config: BenchmarkConfig) -> None:
    given = [f"--{name}" for name in _OF_CAPTIONS if getattr(config, name) is not None]
    given += ["--allow_missing"] * config.allow_missing + ["--prompt"] * (config.prompt != "seed")
    if given:
        raise UserError(f"the task {CONCLUSIONS} asks the rows' own questions and has no use for {', '.join(given)}")
