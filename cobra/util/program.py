"""Commands as the user has them: the scripts of a checkout, or `cobra-vlm` where the package was installed alone.

Messages name the scripts; :func:`as_installed` puts the commands in their place where they are printed.
"""

import os
import re
import shlex
import sys
from pathlib import Path

COMMAND = "cobra-vlm"

# The scripts of a checkout by command.
SCRIPTS = {
    "demo": "scripts/demo.py",
    "preprocess": "scripts/preprocess.py",
    "mix lvis": "scripts/additional-datasets/lvis_instruct_4v.py",
    "mix lrv": "scripts/additional-datasets/lrv_instruct.py",
    "prepare": "fine_tune/prepare_llava_cot.py",
    "train": "scripts/pretrain.py",
    "generate": "scripts/generate.py",
    "serve": "scripts/serve.py",
    "benchmark": "benchmark.py",
    "export": "scripts/export.py",
    "study": "scripts/study.py",
}
# Set for a program that is a part of another one, which says itself what comes next.
PART = "COBRA_PART"
_ROOT = Path(__file__).resolve().parents[2]


def by_scripts() -> bool:
    """Return True if the user starts the scripts of a checkout, and not `cobra-vlm`."""
    started = Path(sys.argv[0])
    if started.name == COMMAND or started.parts[-2:] == ("cobra", "__main__.py"):
        return False
    return (_ROOT / SCRIPTS["train"]).is_file()


def command_line(name: str, *arguments: str, processes: int = 1) -> str:
    """Return the command of a program as the user types it.

    Args:
        name: A command of `cobra-vlm`, such as `train`.
        arguments: Its arguments.
        processes: Processes that it runs in; several run through torchrun.
    """
    return shlex.join([*_start(name, processes, [COMMAND], ["torchrun"], ["python"]), *arguments])


def program(name: str, processes: int = 1) -> list[str]:
    """Return the start of a program's command, to run it with this Python and from any folder; see `command_line`."""
    python = [sys.executable]
    start = _start(name, processes, [*python, "-m", "cobra"], [*python, "-m", "torch.distributed.run"], python)
    return [str(_ROOT / word) if word == SCRIPTS.get(name) else word for word in start]


def _start(name: str, processes: int, command: list[str], torchrun: list[str], python: list[str]) -> list[str]:
    script = SCRIPTS.get(name)
    if script is None or not by_scripts():
        return [*command, *name.split(), *(("--nproc", str(processes)) if processes > 1 else ())]
    if processes == 1:
        return [*python, script]
    return [*torchrun, "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes), script]


def as_installed(text: str) -> str:
    """Return a text that names scripts of a checkout with the commands that the user has in their place."""
    if not by_scripts():
        for name, script in SCRIPTS.items():
            text = re.sub(rf"(?:python )?(?<![\w/]){re.escape(script)}", f"{COMMAND} {name}", text)
    return text


def names_next_commands() -> bool:
    """Return True where a program ends with the commands that come next: nowhere as a part of another program."""
    return PART not in os.environ


def script_line() -> str:
    """Return the command of the script that runs."""
    started = Path(sys.argv[0]).resolve()
    return f"python {started.relative_to(_ROOT) if started.is_relative_to(_ROOT) else sys.argv[0]}"
