"""Flags of `benchmark.py`; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.responses.protocol import MAX_NEW_TOKENS
from cobra.util.home_paths import PathText

CAPTIONS = "captions"
CONCLUSIONS = "llava-cot"


@dataclass
class BenchmarkConfig:
    """Score captions of a model, or of any system's results file, against human ones.

    A model answers twice: directly, and after a scratchpad. With a baseline that makes four variants.
    """

    checkpoint: PathText | None = None
    """Model to score: a run directory, a .pt file in one, or a model id."""
    baseline_checkpoint: PathText | None = None
    """Model to compare it with, in the same forms."""
    task: str = CAPTIONS
    """`captions` scores captions of images; `llava-cot` scores the conclusions on held-out rows of LLaVA-CoT-100k."""
    coco_annotations: PathText | None = None
    """Reference captions: COCO's annotation file, Karpathy's dataset_coco.json, a JSON file of captions by file name, a
    folder with such a captions.json, or a data set (id on the hub, or folder of Parquet). Default: the files of the
    data set coco-captions."""
    image_dir: Path | None = None
    """Folder of the images that the annotations name. Default: that of coco-captions."""
    split: str | None = None
    """Split to score: of Karpathy's file test by default, of a data set the one that it names."""
    image_ids: PathText | None = None
    """Score these images only: a file of ids or file names, or `karpathy-test`."""
    llava_cot_annotations: Path | None = None
    """Held-out rows of the task llava-cot. Default: those that fine_tune/prepare_llava_cot.py wrote to data."""
    predictions: Path | None = None
    """Captions of any system in COCO's results format, scored as they are; no checkpoint is needed."""
    lmms_eval_logs: tuple[Path, ...] = ()
    """Folders with the logs of lmms-eval (its --output_path, with --log_samples), one of each model: their scores are
    compared document by document; no checkpoint is needed."""
    model: tuple[str, ...] = ()
    """Models to compare as a study compares its arms, `NAME=CHECKPOINT` each, any number; several of one name are that
    arm's seeds."""
    allow_missing: bool = False
    """Score only the images that the predictions caption instead of stopping where some lack one."""
    exclude_ids: Path | None = None
    """Images to leave out because they were trained on: coco_ids.json, a list of ids, or training rows. Without it the
    contamination is only reported."""
    coco_instances: Path | None = None
    """COCO's instances file of the same images, for CHAIR: the share of mentioned objects that are not in the image."""
    similarity_model: PathText | None = None
    """Folder or hub id of a sentence-transformers model. Default: the packaged all-MiniLM-L6-v2."""
    output_dir: Path = Path("runs/benchmark")
    """Folder of report.html, metrics.json, predictions/ and answers/. An interrupted benchmark resumes from it."""
    prompt: str = "seed"
    """Final prompt of all variants: `seed`, `lmms-eval`, `@path` of a UTF-8 file, or the prompt itself."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Most tokens of an answer; a scratchpad's first pass has its own limit of 256."""
    max_images: int | None = None
    """Size of the sample of images to score, always the same one. Default: all images."""
    batch_size: int = 8
    """Images answered in one batch."""
    search: str = "none"
    """Search for the final answer: `none` takes the likeliest token at every step, `best-of-n` and `vote` write several
    answers, `stage-beam` branches at every stage."""
    beams: int = 4
    """Answers, or branches of each stage for stage-beam, that a search chooses from."""
    hf_token: PathText = ".hf_token"
    """Environment variable or file that holds the hub's token; needed for closed repositories only."""
    device: str | None = None
    """Device: cuda, mps or cpu. Default: the best one available."""
    dtype: str | None = None
    """Precision: fp32, bf16 or fp16. Default: fp32 on a CPU, fp16 on mps, bf16 on CUDA."""
    quantize: str | None = None
    """Keep the large matrices of the language model in nf4 (a quarter of the memory of bf16) or int8 (half)."""
