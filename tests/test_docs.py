"""The documents say what is true: commands parse, links lead somewhere, quoted messages are the code's own."""

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from itertools import chain, takewhile
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import cobra
from cobra.commands import NAMES, find_command
from cobra.demo.tiny import RUNS
from cobra.evaluation.responses.protocol import ANALYSIS_PROMPT, DEFAULT_PROMPT, SCRATCHPAD_PROMPT
from cobra.preprocessing.datasets.datasets import read_rows
from cobra.util.cli import asks_for_help, parse
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    *("README.md", "FINETUNING_GUIDE.md", "FINETUNING_IMPLEMENTATION.md", "FINETUNING_SUMMARY.md", "CONTRIBUTING.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
)
PAGES = {"commands", "prepare", "train", "resume", "cluster", "evaluate", "metrics", "serve", "talk", "troubleshooting"}

# As the document that the project implements has them.
SEED_COMMANDS = (
    "python fine_tune/prepare_llava_cot.py --dataset_root data\n",
    "torchrun --standalone --nnodes 1 --nproc-per-node <N_GPUS> \\\n"
    "  scripts/pretrain.py \\\n"
    "  --dataset.type llava-cot-100k \\\n"
    "  --model.type cobra-3b \\\n"
    "  --stage finetune \\\n"
    "  --pretrained_checkpoint <BASELINE_CHECKPOINT>\n",
    "python benchmark.py --checkpoint <FINETUNED_CHECKPOINT>\n",
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(document)) if kind == language]


def inline_code(document: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", read(document)))]


def commands(document: str) -> Iterator[list[str]]:
    """The words of every command line of a document, without variables set in front."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    started = r"(\w+=\S* )*(python|torchrun|make|cobra-vlm [a-z]+) \S"
    lines += [code for code in inline_code(document) if re.match(started, code)]
    for line in lines:
        words = [*takewhile(lambda word: word not in (">", ">>", "&&", "|"), shlex.split(line))]
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


ALL_COMMANDS = [(document, words) for document in DOCUMENTS for words in commands(document)]

SCRIPTS = sorted({word for _, words in ALL_COMMANDS for word in words if re.fullmatch(r"[\w/]+\.py", word)})


@cache
def config_class(script: str) -> type:
    """The dataclass whose fields are a script's flags."""
    spec = importlib.util.spec_from_file_location("documented_script", ROOT / script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As for a script that is run.
        patch.syspath_prepend(str((ROOT / script).parent))
        spec.loader.exec_module(module)
    if hasattr(module, "COMMAND"):
        return module.COMMAND.config_class
    (parameter,) = inspect.signature(module.main).parameters
    return typing.get_type_hints(module.main)[parameter]


def parse_command(words: list[str]) -> None:
    """Parse a command line as its program would; raise or exit where that would."""
    if words[0] in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file()
        words = ["cobra-vlm", "train", *words[2:]]
    if words[0] == "torchrun":
        options = get_args_parser().parse_args(words[1:])
        words = ["python", options.training_script, *options.training_script_args]
    if words[0] == "cobra-vlm" and words[1:] != ["--help"]:
        command = find_command(words[1])
        if not asks_for_help(words[2:]):
            parse(command.config_class, words[2:], command.usage.positional)
    elif words[0] == "python" and words[1].endswith(".py"):
        if not asks_for_help(words[2:]):
            parse(config_class(words[1]), words[2:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        missing = [target for target in targets if not re.search(rf"^{target}:.*##", read("Makefile"), re.MULTILINE)]
        assert not missing, f"the Makefile has no target {missing}"


@pytest.mark.parametrize(("document", "words"), ALL_COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_parse(document, words):
    parse_command(words)


def test_commands_are_found_and_wrong_ones_are_refused():
    assert {"fine_tune/prepare_llava_cot.py", "benchmark.py", "scripts/preprocess.py"}.issubset(SCRIPTS)
    assert sum(words[0] == "torchrun" for _, words in ALL_COMMANDS) >= 4
    for wrong in (
        "python benchmark.py --chekpoint x",
        "torchrun --standalone scripts/pretrain.py --model.type cobra-4b",
    ):
        with pytest.raises(UserError):
            parse_command(shlex.split(wrong))
    with pytest.raises(AssertionError):
        parse_command(["make", "coffee"])


@pytest.mark.parametrize("document", ["README.md", "FINETUNING_SUMMARY.md"])
@pytest.mark.parametrize("command", SEED_COMMANDS)
def test_the_seeds_commands_stand_as_they_were(document, command):
    assert command in blocks(document, "bash")


def test_every_task_has_its_page():
    assert {f"docs/{page}.md" for page in PAGES} <= {*DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(document))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.is_file(), target
        if not heading:
            continue
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
        assert heading in slugs, target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_of_the_repository_are_there(document):
    named = [code for code in inline_code(document) if re.fullmatch(r"(cobra|scripts|fine_tune|tests)/[\w./-]*", code)]
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@cache
def modules() -> tuple[str, ...]:
    folders = ("cobra", "scripts", "fine_tune", "tests", "benchmarks", "findings")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return tuple(f"/{path.relative_to(ROOT).as_posix()}" for path in [*files, *ROOT.glob("*.py")])


@pytest.mark.parametrize("document", sorted({*DOCUMENTS} - {"FINETUNING_SUMMARY.md"}))
def test_modules_are_there_under_the_end_of_their_path(document):
    named = [code for code in inline_code(document) if re.fullmatch(r"[\w/]+\.py", code)]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in modules())]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_in_the_text_are_known(document):
    known = {"--flag", "--help", "--no-build-isolation", "--no-deps", "--index-url"}
    known |= {flag for action in get_args_parser()._actions for flag in action.option_strings}
    # Of sbatch, srun, sacct, docker and hf.
    known |= {"--nodes", "--time", "--requeue", "--signal", "--gpus", "--format", "--shm-size", "--local-dir"}
    # Of lmms-eval.
    known |= {"--model_args", "--use_cache"}
    known |= {f"--{flag}" for script in SCRIPTS for flag in flags(config_class(script))}
    known |= {f"--{flag}" for name in NAMES for flag in flags(find_command(name).config_class)}
    used = {word for code in inline_code(document) for word in re.findall(r"--[a-z][\w.-]*[a-z]", code)}
    families = {word for word in used if f"{word}_..." in read(document)}
    assert used - families <= known


def flags(config: type, prefix: str = "") -> Iterator[str]:
    """The names of all flags of a configuration; those of a registry are the fields of its base class."""
    yield from ("config_path", f"{prefix}type")
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flags(hints[field.name], f"{field.name}.")


@cache
def templates() -> list[str]:
    """Every text in the package's code, with "\\0" in place of what is filled in."""
    texts = []
    for path in (ROOT / "cobra").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_quoted_errors_are_the_codes_own():
    table = read("docs/troubleshooting.md")
    quoted = [
        code for code, source in re.findall(r"^\| `([^`]+)`( \(from torch\))? \|", table, re.MULTILINE) if not source
    ]
    assert len(quoted) >= 20
    for message in quoted:
        pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip()]
        pattern = re.compile(".*".join(pieces), re.DOTALL)
        assert any(pattern.search(template) for template in templates()), message


def test_quoted_prompts_are_the_benchmarks():
    quoted = blocks("docs/evaluate.md", "text")
    for prompt in (DEFAULT_PROMPT, ANALYSIS_PROMPT, SCRATCHPAD_PROMPT):
        assert f"{prompt}\n" in quoted


def test_the_making_of_cobra_tiny_is_told_as_it_is():
    told = " ".join(read("FINETUNING_IMPLEMENTATION.md").partition("## How cobra-tiny was made")[2].split())
    assert all(f" {run.steps:,} steps" in told for run in RUNS)
    assert all(f"batches of {run.batch_size} " in told for run in RUNS)


def test_extras_are_the_packages():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    pattern = r"(?:'\.\[|cobra-vlm\[|extra `)([\w,-]+)"
    named = [names.split(",") for document in DOCUMENTS for names in re.findall(pattern, read(document))]
    assert named and {*chain(*named)} <= extras.keys()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_are_plain(document):
    text = read(document)
    assert text.isascii() and text.endswith("\n")
    assert "TODO" not in text
    for body in blocks(document, "python"):
        ast.parse(body)


def test_example_rows_are_of_the_format(tmp_path):
    (example,) = blocks("docs/prepare.md", "json")
    (tmp_path / "rows.json").write_text(example, encoding="utf-8")
    (row,) = read_rows(tmp_path / "rows.json")
    assert row["image"] == "kitchen/0001.jpg" and len(row["conversations"]) == 4


def test_mixing_example_runs(tmp_path, monkeypatch):
    (example,) = [body for body in blocks("docs/prepare.md", "python") if "mix.json" in body]
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    sources = {
        "download/llava-cot-100k/llava_cot_100k.json": [{"id": 1, "image": "sqa/1.png", "conversations": turns}],
        "my/rows.json": [{"id": 1, "image": "a.png", "conversations": turns}, {"id": 2, "conversations": turns}],
    }
    for name, rows in sources.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/prepare.md", "exec"), {})
    mixed = read_rows(tmp_path / "data" / "mix.json")
    assert [row.get("image") for row in mixed] == ["download/llava-cot-100k/sqa/1.png", "my/images/a.png", None]


def test_python_examples_run(monkeypatch, capsys):
    first, second = [body for body in blocks("docs/talk.md", "python") if "vlm.ask" in body or "vlm.stream" in body]
    load = cobra.load
    monkeypatch.setattr(cobra, "load", lambda name: load(name, device="cpu"))
    names = {}
    exec(compile(first, "docs/talk.md", "exec"), names)
    one, both, searched = capsys.readouterr().out.splitlines()
    assert [one, searched] == ast.literal_eval(both)
    exec(compile(second, "docs/talk.md", "exec"), names)
    assert capsys.readouterr().out == f"{searched}[None, None, None, None]\n"
    assert names["answers"][:3] == [one, searched, one]


@pytest.mark.fault("E13")
def test_search_example_runs(capsys):
    (example,) = [body for body in blocks("docs/talk.md", "python") if "search_batch" in body]
    exec(compile(example, "docs/talk.md", "exec"), {})
    assert re.match(r"A green cross at the left\. \d+ \d+\n", capsys.readouterr().out)


def test_examples_of_extending_are_those_that_are_tested():
    folder = ROOT / "tests" / "extending"
    shown = set()
    for body in blocks("docs/extend.md", "python"):
        first, _, excerpt = body.partition("\n")
        path = ROOT / first.removeprefix("# ")
        assert excerpt in path.read_text(encoding="utf-8"), first
        shown.add(path)
    modules = {path for path in folder.glob("*.py") if not path.name.startswith("test_")}
    assert shown == modules - {folder / "conftest.py", folder / "few_steps.py"}
