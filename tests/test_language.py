"""Descriptions stand without the name before them, everything public has one, and functions and files stay short.

A module's first line says what the module does, as a noun phrase or an imperative: no question, no gerund. No
docstring, entry of its lists, text under a field or help text begins with "Of", "Whether" or "What". `python
tests/test_language.py` prints what is left and the lengths.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from math import ceil
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for pattern in ("cobra/**/*.py", "scripts/**/*.py", "fine_tune/**/*.py", "benchmarks/**/*.py", "benchmark.py")
    for path in ROOT.glob(pattern)
)


# Read when a test asks: every process that collects tests imports this file.
@cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in FILES}


LEANS_ON_ITS_NAME = re.compile(r"(Of|Whether|What|Return whether)\b")
# An entry of a docstring's list of arguments, attributes or errors.
ENTRY = re.compile(r"^ *\**[\w.]+: (.*)", re.MULTILINE)
ASKS = re.compile(r"(How|Of|What|When|Where|Whether|Which|Who|Whose|Why)\b")
GERUND = re.compile(r"[A-Z][a-z]*ing\b")
# Words in -ing that are nouns where a module begins with them.
NOUNS = {"Floating", "String", "Training"}
# Lines of a function with its docstring, and of a file as it is; the longest, and what 95 of 100 stay within.
FUNCTION_LINES, FUNCTION_LINES_P95 = 59, 32
FILE_LINES, FILE_LINES_P95 = 399, 303

Function = ast.FunctionDef | ast.AsyncFunctionDef


def descriptions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring, text under a field and help text but the module's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | Function):
            text = ast.get_docstring(node)
            if text:
                yield node.lineno, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.Assign | ast.AnnAssign) and is_text(below):
                    yield below.lineno, below.value.value.strip()
        if isinstance(node, ast.keyword) and node.arg == "help" and is_text(ast.Expr(node.value)):
            yield node.value.lineno, node.value.value
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help" and is_text(ast.Expr(value)):
                    yield value.lineno, value.value


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def odd_descriptions() -> dict[str, list[str]]:
    """Return the descriptions that lean on their names, and the modules that open with a question or a gerund."""
    odd: dict[str, list[str]] = {}
    for path, tree in trees().items():
        lines = [
            f"{path}:{line}: {part.splitlines()[0]}"
            for line, text in descriptions(tree)
            for part in [text, *ENTRY.findall(text)]
            if LEANS_ON_ITS_NAME.match(part)
        ]
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        gerund = GERUND.match(first)
        if ASKS.match(first) or (gerund and gerund.group() not in NOUNS):
            lines.insert(0, f"{path}:1: {first}")
        if lines:
            odd[path] = lines
    return odd


def undocumented() -> list[str]:
    """Return the public modules, classes, functions and methods without a docstring."""
    bare = [path for path, tree in trees().items() if not ast.get_docstring(tree)]
    for path, tree in trees().items():
        todo: list[ast.AST] = [tree]
        while todo:
            for node in todo.pop().body:  # type: ignore[attr-defined]
                if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                    if not ast.get_docstring(node) and "overload" not in map(ast.unparse, node.decorator_list):
                        bare.append(f"{path}:{node.lineno}: {node.name}")
                    if isinstance(node, ast.ClassDef):
                        todo.append(node)
    return bare


def unannotated() -> list[str]:
    """Return the functions, private and nested ones too, with an argument or a return value that has no type."""
    bare = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                every += [star for star in (arguments.vararg, arguments.kwarg) if star]
                returns = node.returns is not None or node.name == "__init__"
                if not returns or any(a.annotation is None for a in every if a.arg not in ("self", "cls")):
                    bare.append(f"{path}:{node.lineno}: {node.name}")
    return bare


def lengths() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the lines of each function and of each file of the package, shortest first."""
    package = {path: tree for path, tree in trees().items() if path.startswith("cobra/")}
    files = [(len((ROOT / path).read_text().splitlines()), path) for path in package]
    each = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for path, tree in package.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    return sorted(each), sorted(files)


def p95(ordered: list[tuple[int, str]]) -> int:
    return ordered[ceil(0.95 * len(ordered)) - 1][0]


def test_descriptions_stand_alone() -> None:
    assert not odd_descriptions()


def test_everything_public_is_documented() -> None:
    assert not undocumented()


def test_everything_is_typed() -> None:
    assert not unannotated()


def test_functions_and_files_stay_short() -> None:
    each, files = lengths()
    assert each[-1][0] <= FUNCTION_LINES, each[-1]
    assert files[-1][0] <= FILE_LINES, files[-1]
    assert p95(each) <= FUNCTION_LINES_P95
    assert p95(files) <= FILE_LINES_P95


if __name__ == "__main__":
    odd = odd_descriptions()
    print(*(line for lines in odd.values() for line in lines), *undocumented(), *unannotated(), sep="\n")
    each, files = lengths()
    print(f"odd descriptions {sum(map(len, odd.values()))} in {len(odd)} files")
    print(f"functions: p95 {p95(each)}, longest {each[-1]}; files: p95 {p95(files)}, longest {files[-1]}")
