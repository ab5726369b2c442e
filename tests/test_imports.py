"""Imports of the package go one way: no circles, no arrows to a higher floor, and no late import without a reason.

Every import counts, also those inside functions and for type checkers; only the names that a package's `__init__`
passes on lazily do not. `python tests/test_imports.py` prints the counts.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "cobra"
# From the ground up; a module stands on the floor of its longest prefix.
FLOORS = [
    "util",
    "reasoning",
    "conf",
    "models.hub models.integrity models.registry models.tensors models.tiny",
    "models.mamba models.quantized",
    "models.backbones",
    "models.generation",
    "models.run_folder models.checkpoint",
    "models.vlms",
    "models",
    "preprocessing",
    "training",
    "evaluation.data",
    "evaluation.responses.protocol",
    "evaluation.config",
    "evaluation.responses",
    "evaluation.metrics",
    "evaluation.report",
    "evaluation.tasks",
    "evaluation.lmms_eval",
    "evaluation",
    "serving",
    "talk",
    "demo",
    "study",
    "export",
    "doctor",
    "check",
    "commands",
    "__main__",
]
# What `--help` and data tools must not wait for, or what is not always installed.
HEAVY = frozenset(
    "bitsandbytes causal_conv1d datasets huggingface_hub mamba_ssm numba peft PIL pyarrow pycocoevalcap requests "
    "sentence_transformers starlette torch.utils.tensorboard timm torch torchvision transformers "
    "triton urllib3 uvicorn wandb".split()
)
# Held: a new one needs a library of HEAVY, and a look at whether it can do without.
LATE_IMPORTS = 33


FLAGS = {
    "cobra.check.config",
    "cobra.demo.config",
    "cobra.evaluation.config",
    "cobra.export.config",
    "cobra.preprocessing.llava_cot.config",
    "cobra.talk.options",
    "cobra.training.config",
    "cobra.training.planning.config",
}


class Import(NamedTuple):
    """One module that another imports."""

    source: str
    target: str
    line: int
    where: str
    """`module`, `late` (inside a function) or `typing`."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Read when a test asks: every process that collects tests imports this file.
@cache
def trees() -> dict[str, tuple[Path, ast.Module]]:
    """Return every module's file and tree."""
    return {module_name(path): (path, ast.parse(path.read_bytes())) for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def statements(node: ast.AST, where: str = "module") -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yield every import below a node, and where it is run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, where
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, "late")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from statements(child, "typing")
        else:
            yield from statements(child, where)


def imports_of(source: str) -> Iterator[Import]:
    """Yield a module's imports; a name that a package passes on counts as the module that defines it."""
    path, tree = trees()[source]
    for node, where in statements(tree):
        if where == "typing" and path.name == "__init__.py":
            continue
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            targets = {definer(node.module or "", alias.name) for alias in node.names}
        yield from (Import(source, target, node.lineno, where) for target in sorted(targets))


def definer(module: str, name: str) -> str:
    """Return the module that a name of a module comes from, through the `__init__` files that pass it on."""
    if f"{module}.{name}" in trees():
        return f"{module}.{name}"
    if module in trees() and trees()[module][0].name == "__init__.py":
        for node, _ in statements(trees()[module][1]):
            if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
                return definer(node.module or "", next(a.name for a in node.names if name in (a.asname, a.name)))
    return module


@cache
def imports() -> list[Import]:
    """Return all imports of all modules."""
    return [imported for source in trees() for imported in imports_of(source)]


@cache
def arrows_between() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for imported in imports():
        if imported.target in trees() and imported.target != imported.source:
            arrows[imported.source].add(imported.target)
    return arrows


def floor(module: str) -> int:
    """Return the number of a module's floor; the package itself, which passes names on lazily, stands on the ground."""
    rooms = (
        (len(room), level)
        for level, names in enumerate(FLOORS)
        for room in names.split()
        if f"{module}.".startswith(f"{PACKAGE}.{room}.")
    )
    return 0 if module == PACKAGE else max(rooms)[1]


def circles() -> set[str]:
    """Return the circles of imports, each as its modules (the strongly connected components, by who reaches whom)."""
    reach = {source: reached(source, arrows_between()) for source in trees()}
    groups = {
        frozenset(m for m in reach[source] if source in reach[m]) for source in trees() if source in reach[source]
    }
    return {" <-> ".join(sorted(group)) for group in groups}


def reached(source: str, arrows: dict[str, set[str]]) -> set[str]:
    """Return every module that can be come to from one over at least one arrow."""
    seen: set[str] = set()
    waiting = [source]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def arrows_up() -> set[str]:
    """Return the imports of a higher floor."""
    return {
        f"{source} -> {target}"
        for source, targets in arrows_between().items()
        for target in targets
        if floor(target) > floor(source)
    }


def eager_arrows() -> dict[str, set[str]]:
    """Return what is imported with each module: its module-level imports, and the parents of all of these."""
    eager: dict[str, set[str]] = defaultdict(set)
    for imported in imports():
        if imported.where == "module":
            eager[imported.source] |= with_parents(imported.target)
    for source in trees():
        eager[source] |= with_parents(source) - {source}
    return eager


def with_parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


def late_imports() -> tuple[int, set[str]]:
    """Return the number of late imports below the commands, and those that spare no heavy or optional library."""
    eager = eager_arrows()
    # A command's flags are read before its work is imported: all of its imports may be late.
    late = [i for i in imports() if i.where == "late" and not i.source.startswith("cobra.commands.")]
    idle = {
        f"{late_import.source} -> {late_import.target} (late)"
        for late_import in late
        if not (with_parents(late_import.target) | reached(late_import.target, eager))
        & HEAVY - reached(late_import.source, eager)
    }
    return len({(imported.source, imported.line) for imported in late}), idle


def report() -> str:
    count, idle = late_imports()
    return (
        f"circles {len(circles())}, arrows up {len(arrows_up())}, late imports {count} (without a reason {len(idle)})"
    )


def test_imports_go_one_way() -> None:
    print(report())
    violations = circles() | arrows_up() | late_imports()[1]
    assert not violations


def test_flags_need_no_torch() -> None:
    eager = eager_arrows()
    modules = [source for source in trees() if source.startswith("cobra.conf") or source in FLAGS]
    assert not {source for source in modules if reached(source, eager) & {"torch", "transformers", "datasets"}}


def test_the_number_of_late_imports_is_held() -> None:
    assert late_imports()[0] <= LATE_IMPORTS


if __name__ == "__main__":
    print(report())
    violations = circles() | arrows_up() | late_imports()[1]
    print(*sorted(violations), sep="\n")
    sys.exit(bool(violations))
