"""Plans as tables for people and as JSON for programs."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.training.planning.estimates import Plan
from cobra.training.planning.memory import GIB, Memory

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    title = f"Plan of {plan.model_id}, stage {plan.stage}, on {plan.steps.world_size} x {plan.device}, {plan.strategy}"
    console.print(f"[bold]{escape(title)}[/bold]")
    for table in (_parts(plan), _batches(plan), _memory(plan), _cost(plan)):
        console.print(table)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values: bytes and counts, without the numbers of each row."""
    values = asdict(plan)
    values["rows"] = {name: value for name, value in vars(plan.rows).items() if not isinstance(value, np.ndarray)}
    values["rows"] |= {"count": len(plan.rows.tokens), "with_image": int(plan.rows.has_image.sum())}
    values["steps"]["accumulation_steps"] = plan.steps.accumulation_steps
    for entry, variant in zip(values["variants"], plan.variants, strict=True):
        entry["memory"]["total"] = variant.memory.total
    file = plan.options.json_file
    values["options"]["json_file"] = None if file is None else str(file)
    return values


def _short(count: float) -> str:
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Return a table whose first column stands at the left and whose others stand at the right."""
    table = Table(*columns, title=title, title_justify="left", caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _parts(plan: Plan) -> Table:
    rows = []
    for part in plan.parts:
        trained = "frozen" if not part.trained else "all" if part.trained == part.parameters else _short(part.trained)
        rows.append((part.name, _short(part.parameters), trained, part.dtype, _gib(part.bytes)))
    table = _table("Parameters", ("part", "parameters", "trained", "held in", "GiB, whole"), rows)
    table.add_section()
    parameters, trained, size = (
        sum(getattr(part, name) for part in plan.parts) for name in ("parameters", "trained", "bytes")
    )
    table.add_row("all", _short(parameters), _short(trained), "", _gib(size))
    return table


def _batches(plan: Plan) -> Table:
    steps, epoch, rows = plan.steps, plan.epoch, plan.rows
    passes = f"{steps.world_size:,} x {steps.accumulation_steps:,} x {steps.per_device_batch_size:,}"
    numbers = {
        "rows": f"{len(rows.tokens):,}",
        "of these with an image": f"{int(rows.has_image.sum()):,}",
        "tokens of text in a row, mean and longest": f"{rows.tokens.mean():,.0f}, {rows.tokens.max():,}",
        "positions of an image": f"{plan.image_tokens:,}",
        "global batch": f"{steps.global_batch_size:,}",
        "= processes x passes x rows of a pass": passes,
        "steps of an epoch": f"{steps.batches_per_epoch:,}",
        "epochs": f"{steps.epochs:,}",
        "steps": f"{steps.total_steps:,}",
        "tokens of text in an epoch": _short(epoch.tokens),
        "positions in an epoch, padding included": _short(epoch.positions),
    }
    table = _table("Rows and steps", ("what", "number"), numbers.items())
    table.caption = f"Tokens: {rows.source}."
    return table


_RECOMPUTED = {"all": "blocks recomputed", "scan": "all but their scan", "none": "blocks kept"}


def _memory(plan: Plan) -> Table:
    rows = plan.steps.per_device_batch_size
    title = f"Memory of one GPU in GiB, {rows} rows of {plan.longest:,} positions (the longest)"
    names = [_RECOMPUTED[variant.recompute] for variant in plan.variants]
    parts = [_memory_parts(variant.memory) for variant in plan.variants]
    sizes = ((name, *(_gib(part[name]) for part in parts)) for name in parts[0])
    table = _table(title, ("what", f"{names[0]} (as configured)", *names[1:]), sizes)
    table.add_section()
    table.add_row("all, at the worst moment", *(_gib(variant.memory.total) for variant in plan.variants))
    if plan.device == "cuda":
        table.add_row("of", *(f"{plan.options.gpu_memory:,.2f}" for _ in plan.variants))
        largest = ("none" if variant.largest_rows is None else f"{variant.largest_rows}" for variant in plan.variants)
        table.add_row("most rows of a pass that fit and divide the batch", *largest)
    table.caption = "Estimated without a GPU. The larger of the loss and a block counts."
    return table


def _memory_parts(memory: Memory) -> dict[str, int]:
    active = memory.activations
    return {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "Adam's two moments": memory.optimizer,
        "whole parameters and gradients in use": memory.gathered,
        "activations": active.kept,
        "copies of weights in bf16": active.copies,
        "loss over the vocabulary": active.loss,
        "backward pass of one block": active.block,
        "CUDA, NCCL, allocator (an allowance)": memory.allowance,
    }


def _cost(plan: Plan) -> Table:
    disk, work, share = plan.disk, plan.work, f"{plan.options.utilisation:.0%}"
    numbers = {
        "main memory of each process at the start": f"{_gib(plan.start)} GiB",
        f"a checkpoint, {plan.steps.milestones} in the run": f"{disk.weights / 1e9:,.1f} GB",
        "a state to resume from": f"{disk.state / 1e9:,.1f} GB",
        "disk for all of them, at most": f"{disk.total / 1e9:,.1f} GB",
        "operations of a step": f"{work.step / 1e12:,.1f} TFLOP",
        "and of recomputing blocks": f"{work.recomputed / 1e12:,.1f} TFLOP",
    }
    if work.hours is None:
        numbers["hours"] = work.peak_source
    else:
        numbers |= {
            f"peak of a GPU ({work.peak_source})": f"{work.peak_tflops:,.1f} TFLOP/s",
            f"hours, if {share} of the peak are reached (an assumption)": f"{work.hours:,.1f}",
            "GPU hours": f"{work.hours * plan.steps.world_size:,.1f}",
        }
    return _table("Machine and time", ("what", "number"), numbers.items())
