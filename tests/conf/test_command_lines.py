"""The command lines are frozen: users' scripts depend on every flag, and `--help` needs nothing but the package."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("scripts/**/*.py", "fine_tune/*.py", "benchmark.py")
    for path in ROOT.glob(pattern)
)

MODEL = (
    "model_id arch_specifier vision_backbone_id llm_backbone_id image_resize_strategy llm_max_length "
    "align_epochs align_max_steps align_global_batch_size align_per_device_batch_size align_learning_rate "
    "align_weight_decay align_max_grad_norm align_lr_scheduler_type align_warmup_ratio align_train_strategy "
    "finetune_epochs finetune_max_steps finetune_global_batch_size finetune_per_device_batch_size "
    "finetune_learning_rate finetune_weight_decay finetune_max_grad_norm finetune_lr_scheduler_type "
    "finetune_warmup_ratio finetune_train_strategy "
    "enable_gradient_checkpointing enable_mixed_precision_training reduce_in_full_precision type"
)
DATASET = (
    "dataset_id align_stage_components finetune_stage_components dataset_root_dir holdout_components on_bad_image "
    "answer truncation type"
)
FLAGS = {
    "scripts/pretrain.py": (
        "stage pretrained_checkpoint run_id run_root_dir objective seed hf_token trackers wandb_project wandb_entity "
        "device num_workers resume save_interval_steps save_interval_minutes keep_checkpoints keep_epochs time_limit "
        "stop_grace_seconds max_skipped eval_interval_steps eval_samples sharding_group_size offload_optimizer "
        "page dry_run lora plan lora.rank lora.alpha lora.dropout lora.target_modules plan.world_size plan.gpu_memory "
        "lora.quantize plan.peak_tflops plan.utilisation plan.json_file "
        + " ".join([f"model.{name}" for name in MODEL.split()] + [f"dataset.{name}" for name in DATASET.split()])
    ),
    "scripts/study.py": (
        "arms seeds match study_dir questions questions_image_dir coco_annotations image_dir max_images lmms_eval_logs "
        "max_new_tokens batch_size nproc jobs cell scenes scene_questions"
    ),
    "scripts/preprocess.py": "dataset_id root_dir revision hf_token",
    "scripts/additional-datasets/lvis_instruct_4v.py": "root_dir",
    "scripts/additional-datasets/lrv_instruct.py": "root_dir",
    "scripts/generate.py": (
        "model_path hf_token image prompt do_sample temperature top_k top_p min_p repetition_penalty max_new_tokens "
        "seed search beams device dtype quantize"
    ),
    "scripts/serve.py": (
        "model_path hf_token host port open allowed_hosts do_sample temperature top_k top_p min_p repetition_penalty "
        "max_new_tokens seed search beams device dtype quantize api_key max_batch max_waiting"
    ),
    "scripts/export.py": "checkpoint output format dtype parity push_to private hf_token",
    "fine_tune/prepare_llava_cot.py": (
        "dataset_root download revision hf_token keep_parts sources max_samples holdout verify max_rejected "
        "llm_backbone_id llm_max_length seed num_workers"
    ),
    "benchmark.py": (
        "lmms_eval_logs log_samples "
        "checkpoint baseline_checkpoint task coco_annotations image_dir split image_ids llava_cot_annotations "
        "predictions allow_missing exclude_ids coco_instances similarity_model output_dir prompt max_new_tokens "
        "max_images batch_size search beams hf_token device dtype quantize"
    ),
}

FLAGS["scripts/study.py"] += " " + FLAGS["scripts/pretrain.py"]

# Runs every script's --help in one process that cannot import, or reach, what they must not need.
RUNNER = """
import contextlib, io, json, runpy, socket, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} must not be needed")

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())

def refuse(*arguments, **options):
    raise OSError("the network must not be needed")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse

results = {}
for script in sys.argv[2:]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv[:] = [script, "--help", "all"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
            code = None
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    results[script] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(results))
"""


def run_help(blocked: str, scripts: list[str], folder: Path) -> dict[str, list]:
    """Return (exit code, output, errors) of every script's --help, started in an empty folder without a home."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUNNER), blocked, *(str(ROOT / script) for script in scripts)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    return {script: results[str(ROOT / script)] for script in scripts}


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[str, list]:
    return run_help("mamba_ssm,causal_conv1d,triton,wandb,tensorboard,peft", SCRIPTS, tmp_path_factory.mktemp("help"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_optional_package_and_no_network(helps, script):
    code, output, errors = helps[script]
    assert (code, errors) == (0, "")
    assert "usage: " in output


@pytest.mark.parametrize("script", FLAGS)
def test_flags_are_frozen(helps, script):
    """A flag that is gone or renamed breaks its users; a new one belongs into FLAGS on purpose."""
    found = set(re.findall(r"^ +--([\w.]+)", helps[script][1], re.MULTILINE))
    # draccus' own: files in place of flags.
    assert found - {"config_path", "model", "dataset"} == set(FLAGS[script].split())


def test_help_shows_the_choices_of_models_and_datasets(helps):
    text = " ".join(helps["scripts/pretrain.py"][1].split())
    for name in ("cobra+3b", "cobra-3b", "cobra-tiny", "llava-v15", "llava-cot-100k", "custom"):
        assert name in text


@pytest.mark.parametrize(
    "script",
    [
        "scripts/preprocess.py",
        "fine_tune/prepare_llava_cot.py",
        "scripts/additional-datasets/lvis_instruct_4v.py",
        "scripts/additional-datasets/lrv_instruct.py",
    ],
)
def test_help_of_the_data_tools_needs_no_torch(tmp_path, script):
    code, output, errors = run_help("torch,transformers,timm,datasets", [script], tmp_path)[script]
    assert (code, errors) == (0, "")
    assert "usage: " in output
