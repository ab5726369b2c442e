"""The code inside a folder: the package's own source, whole, and enough by itself; and both orders of import."""

import ast
import json
import os
import subprocess
import sys

import pytest
from scratch import picture

from cobra.export.hf.remote_code import AUTO_MAP, remote_files

# The first part runs where there is no package, the second with it, imported after transformers.
ALONE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cobra", "numba", "draccus"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
absent = Absent()
sys.meta_path.insert(0, absent)
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image = sys.argv[1], Image.open(sys.argv[2])
def answer(**options):
    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    processor = AutoProcessor.from_pretrained(folder, **options)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the picture?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    return type(model).__module__, written.tolist()
found = [answer(trust_remote_code=True)]
assert not any(name.partition(".")[0] == "cobra" for name in sys.modules)
sys.meta_path.remove(absent)
import cobra
found.append(answer())
print(json.dumps(found))
"""
FIRST = """
import sys
import cobra
assert not {"torch", "transformers", "timm"} & sys.modules.keys()
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained(sys.argv[1])
print(type(config).__module__, type(AutoImageProcessor.from_pretrained(sys.argv[1])).__module__)
print(type(AutoProcessor.from_pretrained(sys.argv[1])).__module__)
print(type(AutoModelForImageTextToText.from_config(config)).__module__)
"""


def run(code, folder, tmp_path, *arguments):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", code, str(folder), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_answers_without_the_package_and_with_it_after_transformers(hf, hf_folder, tmp_path):
    picture(1).save(tmp_path / "picture.png")
    out = run(ALONE, hf_folder, tmp_path, str(tmp_path / "picture.png"))
    (remote, alone), (package, registered) = json.loads(out.splitlines()[-1])
    assert remote.startswith("transformers_modules.") and package == "cobra.export.hf.modeling_cobra"
    assert (
        alone
        == registered
        == hf.model.generate(
            **hf.inputs(["What is in the picture?"], [picture(1)]), max_new_tokens=24, do_sample=False
        )[0, -len(alone) :].tolist()
    )


@pytest.mark.slow
def test_the_package_comes_first(hf_folder, tmp_path):
    lines = run(FIRST, hf_folder, tmp_path).split()
    assert all(module.startswith("cobra.export.hf.") for module in lines) and len(lines) == 4


def test_the_code_is_whole_and_imports_nothing_but_itself_and_three_libraries():
    files = remote_files()
    allowed = {"torch", "timm", "transformers", "torchvision", "numpy", "PIL", *sys.stdlib_module_names}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {each.partition(".")[0] for each in names} <= allowed, f"{name}: {ast.unparse(node)}"
    for target in AUTO_MAP.values():
        module, _, value = target.partition(".")
        assert f"class {value}(" in files[f"{module}.py"]


def test_the_license_line_names_the_module():
    first = remote_files()["cobra_models_mamba_mamba1.py"].splitlines()[0]
    assert first.startswith("# Made by cobra-vlm") and "cobra.models.mamba.mamba1" in first
