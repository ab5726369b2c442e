"""Checkpoints under evaluation: assigns the roles baseline and finetuned; keeps one model in memory."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cobra
from cobra.evaluation.config import BenchmarkConfig
from cobra.models.run_folder import read_config, run_folder
from cobra.util.errors import UserError
from cobra.util.tokens import read_hf_token

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM

BASELINE = "baseline"
FINETUNED = "finetuned"


class ModelsUnderTest:
    """One or two checkpoints by role, `baseline` and `finetuned`; of their models one is in memory.

    Attributes:
        entries: Descriptions of the checkpoints for `metrics.json`, by role, in that order; empty where only a results
            file is scored.
    """

    def __init__(self, config: BenchmarkConfig, device: torch.device) -> None:
        """Load every checkpoint once, so that none turns out broken after another one's answers; the last one stays.

        Raises:
            UserError: A checkpoint cannot be found or read.
        """
        self._device = str(device)
        self._dtype, self._quantize = config.dtype, config.quantize
        self._token = read_hf_token(config.hf_token)
        self._checkpoint: str | None = None
        self._vlm: CobraVLM | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        for checkpoint in filter(None, (config.baseline_checkpoint, config.checkpoint)):
            vlm = self._get(checkpoint)
            if config.baseline_checkpoint is None:
                role = BASELINE if vlm.is_stock else FINETUNED
            else:
                role = FINETUNED if self.entries else BASELINE
            self.entries[role] = {
                "checkpoint": checkpoint,
                "model_id": vlm.model_id,
                "sha256": vlm.checkpoint_sha256,
                "is_stock": vlm.is_stock,
                "device": str(vlm.device),
                "dtype": str(vlm.dtype).removeprefix("torch."),
                **({"quantize": vlm.quantized} if vlm.quantized else {}),
            }

    def get(self, role: str) -> "CobraVLM":
        """Return the model of a role; where it is not the one in memory, that one is freed and this one loaded."""
        return self._get(self.entries[role]["checkpoint"])

    def _get(self, checkpoint: str) -> "CobraVLM":
        if self._vlm is None or checkpoint != self._checkpoint:
            self._vlm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._vlm = cobra.load(
                checkpoint, self._token, device=self._device, dtype=self._dtype, quantize=self._quantize
            )
            self._checkpoint = checkpoint
        return self._vlm


def dataset_roots(config: BenchmarkConfig) -> list[Path]:
    """Return where the runs under test had their data, and the default place."""
    roots = []
    for checkpoint in filter(None, (config.checkpoint, config.baseline_checkpoint)):
        path = Path(checkpoint)
        if path.exists():
            try:
                folder = path if path.is_dir() else run_folder(path)
                roots.append(Path(read_config(folder)["dataset"]["dataset_root_dir"]))
            # Of a checkpoint of another origin nothing is known.
            except (UserError, KeyError, TypeError):
                continue
    return [*roots, Path("data")]
