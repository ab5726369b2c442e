"""The mixes with LVIS-Instruct-4V and LRV-Instruct, from small inputs of the published shapes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

from cobra.conf import DatasetConfig
from cobra.preprocessing import mixes
from cobra.preprocessing.materialize import find_components
from cobra.util.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts" / "additional-datasets"


def chat(number: int, image: str | None) -> dict:
    turns = [{"from": "human", "value": f"<image>\nWhat is {number}?"}, {"from": "gpt", "value": "\u00e9"}]
    return {"id": f"{number:012d}", **({} if image is None else {"image": image}), "conversations": turns}


BASE = [chat(n, f"gqa/images/{n}.jpg" if n % 3 else None) for n in range(20)]
LVIS = [chat(n, f"coco/{'val' if n % 2 else 'train'}2017/{n:012d}.jpg") for n in range(100, 108)]
LRV = {
    "filter_cap1.json": [{"image_id": "2360489", "question": " Is it red? ", "answer": "No.\n", "task": "x"}],
    "filter_cap_more1.json": [{"image_id": 713764, "question": "Is it blue?", "answer": "Yes."}],
    "chart_release_update.json": [{"image_id": "chart_image/12.png", "question": "Up?", "answer": "Down."}],
}
LRV_ROWS = [
    ("2360489", "lrv/lrv-vg/2360489.jpg", "<image>\nIs it red?", "No."),
    (713764, "lrv/lrv-vg/713764.jpg", "<image>\nIs it blue?", "Yes."),
    ("12", "lrv/lrv-chart/chart_image/12.png", "<image>\nUp?", "Down."),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of all inputs, with every image."""
    folder = tmp_path / "download" / "llava-v1.5-instruct"
    images = [row["image"] for row in [*BASE, *LVIS] if "image" in row] + [image for _, image, _, _ in LRV_ROWS]
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(BASE))
    (folder / "lvis_instruct4v_220k.json").write_text(json.dumps(LVIS))
    for name, rows in LRV.items():
        (folder / "lrv" / name).write_text(json.dumps(rows))
    return folder


def lrv_chats() -> list[dict]:
    return [
        {
            "id": row_id,
            "image": image,
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        for row_id, image, question, answer in LRV_ROWS
    ]


def shuffled(rows: list[dict], generator: random.Random) -> list[dict]:
    rows = list(rows)
    for _ in range(3):
        generator.shuffle(rows)
    return rows


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def run_script(name: str, root: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / name), "--root_dir", str(root)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100)


def test_lvis_mix_holds_all_rows_in_cobras_order(tmp_path, folder):
    mix = mixes.mix_lvis(tmp_path)
    assert read(mix.path) == shuffled(BASE + LVIS, random.Random(7))
    assert (mix.rows, mix.val2017_rows) == (28, 4) and "4 of them show images of COCO val2017" in str(mix)
    content = mix.path.read_bytes()
    mixes.mix_lvis(tmp_path)
    assert mix.path.read_bytes() == content
    assert not list(folder.glob(".*"))


def test_lrv_mixes_go_on_with_the_same_generator(tmp_path, folder):
    lvis_rows = read(mixes.mix_lvis(tmp_path).path)
    first, second = mixes.mix_lrv(tmp_path)
    generator = random.Random(7)
    assert read(first.path) == shuffled(BASE + lrv_chats(), generator)
    assert read(second.path) == shuffled(lvis_rows + lrv_chats(), generator)


def test_scripts_write_what_the_configs_name_and_say_what_to_run_first(tmp_path, folder):
    alone = run_script("lrv_instruct.py", tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert "lvis_instruct_4v.py first and this one again" in alone.stdout
    for script in ("lvis_instruct_4v.py", "lrv_instruct.py"):
        done = run_script(script, tmp_path)
        assert done.returncode == 0, done.stderr
    assert ".json: 23 rows" in done.stdout and ".json: 31 rows" in done.stdout and "first" not in done.stdout
    for name, rows in (("llava-lvis4v", 28), ("llava-lrv", 23), ("llava-lvis4v-lrv", 31)):
        annotation, images = find_components(
            "finetune", DatasetConfig.get_choice_class(name)(dataset_root_dir=tmp_path)
        )
        written = read(annotation)
        assert len(written) == rows
        assert all((images / row["image"]).is_file() for row in written if "image" in row)


@pytest.mark.parametrize(
    ("name", "scripts"),
    [
        ("llava-lvis4v", ["lvis_instruct_4v.py"]),
        ("llava-lrv", ["lrv_instruct.py"]),
        ("llava-lvis4v-lrv", ["lvis_instruct_4v.py", "lrv_instruct.py"]),
    ],
)
def test_training_without_a_mix_names_the_scripts_that_make_it(tmp_path, name, scripts):
    with pytest.raises(UserError) as error:
        find_components("finetune", DatasetConfig.get_choice_class(name)(dataset_root_dir=tmp_path))
    commands = [f"python scripts/additional-datasets/{script} --root_dir {tmp_path}" for script in scripts]
    assert str(error.value).endswith("then make it: " + " && ".join(commands))
    assert all((SCRIPTS / script).is_file() for script in scripts)


def test_all_missing_images_are_listed_at_once(tmp_path, folder):
    lost = [*LVIS[:6], *BASE[1:3]]
    for row in lost:
        (folder / row["image"]).unlink()
    with pytest.raises(UserError, match=r"8 of 21 images are missing") as error:
        mixes.mix_lvis(tmp_path)
    text = str(error.value)
    assert text.count(".jpg") == 5 and "val2017.zip" in text and "scripts/preprocess.py" in text
    assert "LRV" not in text
    listed = (folder / "missing_images.txt").read_text().splitlines()
    assert sorted(listed) == sorted(row["image"] for row in lost)
    assert not (folder / "llava_v1_5_lvis4v_mix888k.json").exists()
    for row in lost:
        (folder / row["image"]).touch()
    mixes.mix_lvis(tmp_path)
    assert not (folder / "missing_images.txt").exists()


def test_full_disk_is_a_users_error(tmp_path, folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mixes, "atomic_path", full)
    with pytest.raises(UserError, match="No space left on device. Mend that"):
        mixes.mix_lvis(tmp_path)


def test_missing_inputs_of_lrv_are_named_at_once_with_their_source(tmp_path, folder):
    (folder / "lrv" / "filter_cap_more1.json").unlink()
    (folder / "lrv" / "lrv-vg").rename(folder / "elsewhere")
    done = run_script("lrv_instruct.py", tmp_path)
    assert done.returncode == 2
    assert "filter_cap_more1.json (https://drive.google.com/uc?id=" in done.stderr
    assert "lrv/lrv-vg/ (unpacked from image.tar.gz" in done.stderr
    assert "chart_release_update.json" not in done.stderr


def test_published_rows_are_fetched_where_they_are_missing(tmp_path, folder):
    name = "lvis_instruct4v_220k.json"
    (tmp_path / "published").mkdir()
    (folder / name).rename(tmp_path / "published" / name)
    with HubServer(tmp_path / "published", repo_id="X2FD/LVIS-Instruct4V") as hub:
        done = run_script("lvis_instruct_4v.py", tmp_path, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert read(folder / name) == LVIS and len(read(folder / mixes.LVIS_MIX)) == 28
    (folder / name).unlink()
    done = run_script("lvis_instruct_4v.py", tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert f"{name} is not there" in done.stderr and f"resolve/main/{name}" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("llava_v1_5_mix665k.json", {"a": 1}, "holds a JSON dict, expected a list of rows"),
        ("llava_v1_5_mix665k.json", [], "holds an empty list"),
        ("llava_v1_5_mix665k.json", [BASE[0], 7], r"row 2 of .* is a JSON int"),
        ("llava_v1_5_mix665k.json", [{"id": 1}], "row 1 of .* has no list `conversations`"),
        ("llava_v1_5_mix665k.json", [chat(1, "../../x.jpg")], "row 1 of .* which leads out of its folder"),
        ("llava_v1_5_mix665k.json", [{**BASE[0], "image": 7}], "row 1 of .* which is not a path"),
        ("lrv/filter_cap1.json", [{"image_id": "1", "question": "Q?"}], "row 1 of .* lacks `image_id`"),
        ("lrv/filter_cap1.json", [{"image_id": "/etc/1", "question": "Q?", "answer": "A"}], None),
        ("lrv/chart_release_update.json", [{"image_id": "../../../x", "question": "Q?", "answer": "A"}], "leads out"),
    ],
)
def test_damaged_inputs_are_named_with_their_row(tmp_path, folder, name, content, problem):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=problem or "images are missing"):
        mixes.mix_lrv(tmp_path)
    assert not list(folder.glob("llava_v1_5_l*"))
