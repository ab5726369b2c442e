"""Examination of processors, memory, disks, GPUs, compiler and the job that this process belongs to."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cobra.doctor.finding import Finding
from cobra.doctor.software import torch_build

_GIB = 1 << 30
# One checkpoint of cobra+3b in bf16 has 7 GiB, the state of a full fine-tuning 45 GiB.
_LITTLE_DISK = 60 * _GIB
# Batches of the data workers; Docker gives 64 MiB.
_LITTLE_SHARED = _GIB
_SHARED = Path("/dev/shm")
# Lowest driver of each major CUDA version: NVIDIA, CUDA Toolkit release notes, minor version compatibility.
_LOWEST_DRIVER = {"12": 525, "13": 580}
_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
_WAIT_SECONDS = 20


def examine_machine(folder: Path) -> Iterator[Finding]:
    """Yield the findings about the machine; `folder` lies on the disk that runs are written to."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("machine", "ok", f"{cores} cores for this process, {memory / _GIB:.0f} GiB of memory")
    yield _disk(folder)
    if _SHARED.is_dir():
        yield _shared_memory()
    gpus = _nvidia_gpus()
    yield from _examine_gpus(gpus)
    yield _compiler(bool(gpus))
    yield from _examine_job(len(gpus))


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.0f} GiB free in {folder.resolve()}"
    if free < _LITTLE_DISK:
        remedy = "give --run_root_dir and --root_dir on another disk for real models; cobra-tiny needs 1 GiB"
        return Finding("disk", "note", text, remedy)
    return Finding("disk", "ok", text)


def _shared_memory() -> Finding:
    free = shutil.disk_usage(_SHARED).free
    text = f"{free / _GIB:.1f} GiB free in {_SHARED}"
    if free < _LITTLE_SHARED:
        return Finding("shared memory", "problem", text, "docker run --shm-size 8g, or train with --num_workers 0")
    return Finding("shared memory", "ok", text)


def _nvidia_gpus() -> list[tuple[str, str, float]]:
    """Return name, driver version and GiB of every NVIDIA GPU, as the driver's own tool lists them."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_WAIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [(row[0], row[1], float(row[2]) / 1024) for row in rows if len(row) == 3 and row[2].isdecimal()]


def _examine_gpus(gpus: list[tuple[str, str, float]]) -> Iterator[Finding]:
    cuda, rocm = torch_build()
    has_amd = Path("/dev/kfd").exists()
    if not gpus and not has_amd:
        broken = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
        if broken:
            yield Finding("gpu", "problem", "an NVIDIA driver is there, and lists no GPU", "nvidia-smi shows why")
        else:
            yield Finding("gpu", "note", "none: cobra-tiny runs on the CPU, a real model answers there in minutes")
        return
    for name, driver, memory in gpus:
        yield Finding("gpu", "ok", f"{name}, {memory:.0f} GiB, driver {driver}")
    if has_amd:
        yield Finding("gpu", "ok", "AMD")
    if gpus and cuda is None:
        wheel = "pip install --force-reinstall torch torchvision"
        yield Finding("torch build", "problem", "the installed torch is built without CUDA", wheel)
    elif has_amd and not gpus and rocm is None:
        wheel = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/rocm6.4"
        yield Finding("torch build", "problem", "the installed torch is built without ROCm", wheel)
    else:
        yield Finding("torch build", "ok", f"CUDA {cuda}" if cuda else f"ROCm {rocm}")
    lowest = _LOWEST_DRIVER.get((cuda or "").partition(".")[0])
    driver = gpus[0][1] if gpus else ""
    if lowest and driver.partition(".")[0].isdecimal() and int(driver.partition(".")[0]) < lowest:
        text = f"driver {driver} is older than {lowest}, the lowest for CUDA {cuda}"
        yield Finding("driver", "problem", text, "update the driver, or install a torch built for an older CUDA")


def _compiler(has_gpu: bool) -> Finding:
    names = ("cc", "gcc", "clang")
    compiler = next((path for name in names if (path := shutil.which(os.environ.get("CC", name)))), None)
    if compiler is None:
        text = "no C compiler: Triton needs one at its first launch"
        return Finding("compiler", "problem" if has_gpu else "note", text, "apt install gcc")
    return Finding("compiler", "ok", compiler)


def _examine_job(gpus: int) -> Iterator[Finding]:
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        names = ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_GPUS_ON_NODE")
        known = ", ".join(f"{name} {os.environ[name]}" for name in names if name in os.environ)
        yield Finding("job", "ok", f"Slurm job {job}{f': {known}' if known else ''}")
    for package in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            nccl = version(package)
        except PackageNotFoundError:
            continue
        settings = ", ".join(
            f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")
        )
        text = f"{nccl}{f', {settings}' if settings else ''}"
        yield Finding("nccl", "ok", text if gpus > 1 else f"{text}; one process needs none")
        return
