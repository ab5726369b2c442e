"""One run of training, from its configuration to its last checkpoint."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cobra.conf import DatasetConfig
from cobra.models.backbones.vision.specs import vision_spec
from cobra.models.checkpoint import Checkpoint, read_checkpoint
from cobra.models.load import build_vlm
from cobra.models.run_folder import LATEST, PROVENANCE, find_checkpoint
from cobra.models.vlms import CobraVLM
from cobra.preprocessing import get_dataset_and_collator
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.materialize import find_components
from cobra.preprocessing.packed.files import is_packed
from cobra.training.after_step import step_parts
from cobra.training.batches import count_workers
from cobra.training.check_run import check_run
from cobra.training.config import PretrainConfig, stage_hyperparameters, stage_prefix
from cobra.training.evaluator import Evaluator
from cobra.training.flops import peak_tflops
from cobra.training.loop import TrainingLoop
from cobra.training.lora import apply_lora, check_base, describe_modules
from cobra.training.metrics import Metrics
from cobra.training.objective import Objective, find_objective
from cobra.training.page.run_page import RunPage
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.planning.plan import show_plan
from cobra.training.planning.recomputation import policy_for_run
from cobra.training.preemption import Stopped, StopRequests, grace_seconds, job_end
from cobra.training.resume_settings import check_setting, setting_of
from cobra.training.row_checks import check_images, tell_markers, tell_rows
from cobra.training.run_context import StepPart
from cobra.training.run_directory import (
    FINISHED,
    STOPPED,
    describe_start,
    describe_stop,
    find_run,
    name_run,
    next_commands,
    write_run_dir,
)
from cobra.training.run_state import RESUME, clear_unfinished, delete_states, read_state
from cobra.training.strategy import StepResult, TrainStrategy, get_train_strategy
from cobra.util.browser import open_in_browser
from cobra.util.data_utils import PaddedCollatorForLanguageModeling
from cobra.util.distributed import World, hold_together, join_world
from cobra.util.files import write_json
from cobra.util.lock import Hold
from cobra.util.numbers import counted
from cobra.util.program import command_line, names_next_commands
from cobra.util.provenance import describe_run, resumed_record
from cobra.util.tokens import read_hf_token
from cobra.util.torch_utils import set_global_seed
from cobra.util.waiting import tell_waiting

# What a second start is told.
_TAKEN = "another start trains"


def pretrain(config: PretrainConfig, further_parts: Sequence[StepPart] = ()) -> Path:
    """Run one stage of training; everything that can be wrong is checked before the run directory is made.

    Args:
        config: The configuration.
        further_parts: Parts of one's own that follow every step; see :func:`cobra.training.after_step.step_parts`.

    Returns:
        The run directory; with `dry_run` it is not made.

    Raises:
        UserError: See each part; where it is the configuration, nothing has been written then.
        Stopped: The run was asked to stop; its state is saved.
    """
    check_run(config, (config.dry_run and config.plan.world_size) or int(os.environ.get("WORLD_SIZE", "1")))
    starts_as_main = os.environ.get("RANK", "0") == "0"
    if config.dry_run:
        run_dir = name_run(config)[1]
        # Under torchrun every process makes the plan, and one shows it.
        console = Console(quiet=not starts_as_main, soft_wrap=True, highlight=False)
        show_plan(config, run_dir, console)
        return run_dir
    run_dir = find_run(config)[1]
    grace = config.stop_grace_seconds or grace_seconds(os.environ, os.getppid())
    with StopRequests(config.time_limit, grace, job_end(os.environ)) as stop, ExitStack() as stack:
        say = Console(quiet=not starts_as_main, soft_wrap=True, markup=False, highlight=False).print
        try:
            with tell_waiting("waiting for the other processes", say):
                world = join_world(config.device)
            stack.callback(world.close)
            held = stack.enter_context(hold_together(world, run_dir, _TAKEN))
        except Stopped as stopped:
            # No mark is left: another start may be in that directory.
            if starts_as_main:
                print(f"stopped by {stopped.reason} before the first step of this start: run the same command to go on")
            raise
        state = None
        try:
            # Again: another start may have saved a state meanwhile. Machines may see a shared folder differently.
            [(run_id, run_dir, state), *_] = world.gather(world.on_main(lambda: find_run(config)))
            if world.is_main:
                (run_dir / STOPPED).unlink(missing_ok=True)
            if state is not None:
                say(describe_start(run_dir, state))
            _Start(config, world, held, run_id, run_dir, state, say).train(stop, further_parts)
        except Stopped as stopped:
            if world.is_main:
                say(describe_stop(run_dir, state, stopped))
            if stopped.step is not None:
                # All have agreed. One that ends earlier may take the main process along before it has left its mark.
                world.barrier()
            raise
        return run_dir


@dataclass(frozen=True)
class _Start:
    """One start of a run on this process."""

    config: PretrainConfig
    world: World
    held: Hold | None
    """The run directory as the main process holds it."""
    run_id: str
    run_dir: Path
    state: Path | None
    """State to go on from."""
    say: Callable[..., None]

    def train(self, stop: StopRequests, further_parts: Sequence[StepPart]) -> None:
        config, world, say = self.config, self.world, self.say
        # Before anything is written: what is given may be the token itself.
        read_hf_token(config.hf_token)
        annotation_file, _ = find_components(config.stage, config.dataset)
        objective = find_objective(config.objective)()
        set_global_seed(config.seed)
        with tell_waiting("building the model and reading its weights", say):
            vlm, loaded, source = self.build()
        with tell_waiting(f"reading the rows of {annotation_file}", say):
            dataset, collator = self.open_rows(config.dataset, vlm, objective)
        tell_markers(dataset.examples, say)
        with tell_waiting("reading the held-out rows", say):
            evaluator = self.open_holdout(vlm, objective)
        setting = world.on_main(lambda: self.setting(vlm, dataset, evaluator))
        if config.lora.rank:
            check_base(vlm, loaded)
            apply_lora(vlm, config.lora)
        with tell_waiting(f"counting the tokens of {len(dataset):,} rows", say):
            lengths = self.lengths(dataset, vlm)
        strategy = self.strategy(vlm, objective, self.recompute(vlm, lengths))
        with tell_waiting(f"moving the model to {world.device.type}", say):
            strategy.run_setup()
        self.announce(vlm, dataset)

        def open_run_dir() -> Metrics:
            assert self.held is not None
            self.held.confirm(_TAKEN)
            made_of = describe_run(world, annotation_file, dataset.examples.sha256, len(dataset), source, loaded)
            return self.open_run_dir(made_of, evaluator)

        metrics = world.on_main(open_run_dir)
        save_intervals = config.save_interval_steps, config.save_interval_minutes
        parts = step_parts(
            metrics, evaluator, config.eval_interval_steps, config.keep_epochs, *save_intervals, further_parts
        )
        size = strategy.hyperparameters.per_device_batch_size
        workers = count_workers(config.num_workers, dataset, collator, lengths, size, world, say)
        limits = config.keep_checkpoints, config.max_skipped
        loop = TrainingLoop(
            strategy, dataset, collator, lengths, self.run_dir, parts, config.seed, workers, setting, *limits
        )
        self.run(loop, metrics, len(dataset), stop)

    def run(self, loop: TrainingLoop, metrics: Metrics | None, rows: int, stop: StopRequests) -> None:
        """Train on so many rows to the end of the run, and keep its page current."""
        with ExitStack() as stack:
            page = self.world.on_main(lambda: self.open_page(loop.plan.total_steps))
            if page is not None:
                loop.parts.append(stack.enter_context(page))
            try:
                # What is raised while torch reads a state comes out as an error of that state.
                stop.wait_for_steps()
                if self.state is not None:
                    with tell_waiting(f"reading the state {self.state}", self.say):
                        loop.restore(self.state)
                result = loop.run(stop)
            finally:
                if metrics is not None:
                    metrics.finalize()
            self.finish(loop.strategy, result, rows)

    def build(self) -> tuple[CobraVLM, list[str], Path | None]:
        """Build the model, load what its stage starts from, say in plain words what that is, and freeze what stays."""
        config, say = self.config, self.say
        path: Path | None = None
        checkpoint: Checkpoint = {}
        token = read_hf_token(config.hf_token)
        if config.pretrained_checkpoint is not None:
            path = Path(config.pretrained_checkpoint)
            if not path.is_file():
                path = find_checkpoint(config.pretrained_checkpoint, token).path
            checkpoint = read_checkpoint(path)
        vlm = build_vlm(vars(config.model), checkpoint, token)
        if path is None:
            path = vlm.find_align_checkpoint(config.stage, self.run_dir)
            checkpoint = {} if path is None else read_checkpoint(path)
        loaded: list[str] = []
        if path is None:
            say("no --pretrained_checkpoint: training starts from the bare backbones and a new projector")
        else:
            loaded = vlm.load_modules(checkpoint, path)
            say(f"loaded from {path}: {', '.join(loaded)}")
            if path == vision_spec(config.model.vision_backbone_id).weights:
                # The packaged model's towers are the backbone's own, which load() has without this run's checkpoint.
                vlm.altered_module_keys.discard("vision_backbone")
        architecture = config.model.arch_specifier
        if config.stage == "align" and architecture.startswith("no-align"):
            say(f"warning: the architecture {architecture!r} needs no align stage; it is run all the same")
        vlm.freeze_backbones(config.stage)
        return vlm, loaded, path

    def open_rows(
        self, rows: DatasetConfig, vlm: CobraVLM, objective: Objective
    ) -> tuple[AlignDataset | FinetuneDataset, PaddedCollatorForLanguageModeling]:
        vision, llm = vlm.vision_backbone, vlm.llm_backbone
        dataset, collator = get_dataset_and_collator(
            self.config.stage,
            rows,
            vision.image_transform,
            llm.tokenizer,
            llm.prompt_builder_fn,
            vision.default_image_resolution,
            row_fields=objective.row_fields,
        )
        check_images(dataset, self.config, self.state is not None, self.world, self.say)
        return dataset, collator

    def open_holdout(self, vlm: CobraVLM, objective: Objective) -> Evaluator | None:
        """Open the rows that are never trained on, where the data set has some."""
        config, say = self.config, self.say
        components = config.dataset.holdout_components
        if config.stage == "align" or components is None:
            return None
        file = config.dataset.dataset_root_dir / components[0]
        if not (file.is_file() or is_packed(file)):
            say(f"there are no held-out rows ({file} does not exist): no loss is reported on rows not trained on")
            return None
        # All of them, whatever is dropped of the training rows: one number for all runs.
        # One whose image breaks off is named and left out of it: it ends no run in the middle.
        rows = replace(config.dataset, finetune_stage_components=components, truncation="right", on_bad_image="skip")
        dataset, collator = self.open_rows(rows, vlm, objective)
        say(f"{counted(len(dataset), 'held-out row')} in {file}")
        tell_rows(dataset, say)
        assert isinstance(dataset, FinetuneDataset)
        size = config.model.finetune_per_device_batch_size
        return Evaluator(
            dataset, collator, dataset.get_modality_lengths(), size, config.eval_samples, objective=objective
        )

    def setting(
        self, vlm: CobraVLM, dataset: AlignDataset | FinetuneDataset, evaluator: Evaluator | None
    ) -> dict[str, Any]:
        """Return what must not change when the run goes on, and compare it with the state that it goes on from."""
        setting = setting_of(self.config, vlm, dataset, None if evaluator is None else evaluator.dataset)
        unknown = [] if self.state is None else check_setting(self.run_dir, self.state, setting)
        if unknown:
            self.say(
                f"warning: the state {self.state} was saved by an older version, which did not keep "
                f"{', '.join(unknown)}: these are not compared with those of the run's beginning"
            )
        return setting

    def lengths(self, dataset: AlignDataset | FinetuneDataset, vlm: CobraVLM) -> list[tuple[bool, int]]:
        """Return (has an image, length) of every row; say how many rows are left out."""
        if isinstance(dataset, AlignDataset):
            return dataset.get_modality_lengths(vlm.vision_backbone.num_patches)
        if dataset.left_out:
            self.say(
                f"{dataset.left_out:,} of {dataset.left_out + len(dataset):,} rows left out: their last CONCLUSION "
                f"ends beyond {self.config.model.llm_max_length:,} tokens (--dataset.truncation drop)"
            )
        return dataset.get_modality_lengths()

    def recompute(self, vlm: CobraVLM, lengths: list[tuple[bool, int]]) -> str:
        """Return the part of the blocks that is recomputed, by the memory at hand."""
        config = self.config
        images = vlm.image_tokens if any(has_image for has_image, _ in lengths) else 0
        mixed = config.model.enable_mixed_precision_training

        def build() -> CobraVLM:
            return build_meta_model(config.model, config.stage, config.lora, mixed_precision=mixed)

        # Lengths are in words: the longest row that there can be counts.
        return policy_for_run(config, self.world, (images, config.model.llm_max_length), build)

    def strategy(self, vlm: CobraVLM, objective: Objective, recompute: str) -> TrainStrategy:
        model, prefix = self.config.model, stage_prefix(self.config.stage)
        return get_train_strategy(
            getattr(model, f"{prefix}_train_strategy"),
            vlm,
            self.world,
            stage_hyperparameters(model, self.config.stage),
            enable_gradient_checkpointing=model.enable_gradient_checkpointing,
            enable_mixed_precision_training=model.enable_mixed_precision_training,
            reduce_in_full_precision=model.reduce_in_full_precision,
            flag_prefix=prefix,
            sharding_group_size=self.config.sharding_group_size,
            offload_optimizer=self.config.offload_optimizer,
            objective=objective,
            recompute=recompute,
        )

    def announce(self, vlm: CobraVLM, dataset: AlignDataset | FinetuneDataset) -> None:
        config, world, say = self.config, self.world, self.say
        say(f"{config.model.model_id}: {describe_modules(vlm)}")
        images = int(dataset.examples.has_image.sum())
        texts = len(dataset) - images
        kinds = "all with an image" if not texts else f"{images:,} with an image, {texts:,} of text only"
        say(
            f"{counted(len(dataset), 'row')} of {config.dataset.dataset_id} ({kinds}), stage {config.stage}, in "
            f"{counted(world.size, 'process')} on {world.device.type}"
        )
        tell_rows(dataset, say)
        if config.model.enable_mixed_precision_training and world.device.type != "cuda":
            say(f"mixed precision is for CUDA; on {world.device.type} everything is computed in fp32")

    def open_run_dir(self, made_of: dict[str, Any], evaluator: Evaluator | None) -> Metrics:
        """Make the run directory, or cut it back to the state that the run goes on from; return the open metrics."""
        config, world, run_dir = self.config, self.world, self.run_dir
        reached = None if self.state is None else read_state(self.state).logged_step
        if self.state is None:
            # Not before everything that the run needs was seen.
            self.say(describe_start(run_dir, None))
        (run_dir / RESUME).mkdir(parents=True, exist_ok=True)
        clear_unfinished(run_dir)
        if evaluator is not None:
            evaluator.cut_back(run_dir, reached or 0)
        hparams = write_run_dir(config, self.run_id, run_dir)
        write_json(run_dir / PROVENANCE, made_of if reached is None else resumed_record(run_dir / PROVENANCE, made_of))
        names = config.trackers, self.run_id, run_dir, hparams, config.stage, config.wandb_project, config.wandb_entity
        return Metrics(*names, resumed_step=reached, peak_flops=_peak_flops(world))

    def open_page(self, steps: int) -> RunPage:
        """Write the run's page, name it, and show it where that is asked for."""
        page = RunPage(self.run_dir, steps)
        page.update()
        shown = self.config.page and open_in_browser(page.path)
        self.say(f"page of the run: {page.path.resolve().as_uri() if self.config.page and not shown else page.path}")
        return page

    def finish(self, strategy: TrainStrategy, result: StepResult | None, rows: int) -> None:
        """Mark the run as finished, say so, and delete the states that it will not go on from."""
        if strategy.skipped_rows:
            self.say(
                f"warning: {strategy.skipped_rows:,} of {rows:,} rows had a missing or unreadable image and taught "
                "nothing; the lines 'a row is skipped' name them"
            )
        loss = "" if result is None else f", last loss {result.loss:.4f}"
        steps = counted(strategy.global_step, "step")
        self.say(f"done: {steps}{loss}; checkpoint: {self.run_dir / LATEST}")
        if names_next_commands():
            for line in next_commands(self.config, self.run_dir):
                self.say(line)
        if self.world.is_main:
            write_json(self.run_dir / FINISHED, {"steps": strategy.global_step, "skipped": strategy.skipped_steps})
            delete_states(self.run_dir)


def _peak_flops(world: World) -> float | None:
    """Return the operations a second of all devices together at their best, where that is known."""
    peak = peak_tflops(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
    return None if peak is None else peak * 1e12 * world.size


if __name__ == "__main__":
    raise SystemExit(f"this module is no program; run: {command_line('train')}")
