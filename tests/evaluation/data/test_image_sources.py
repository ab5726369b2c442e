"""Images found and decoded, missing and damaged."""

import pytest
from PIL import Image
from unreadable import unreadable_images

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.image_sources import PictureFolder, check_present
from cobra.util.errors import UserError


def images(*names):
    return [CaptionedImage(number, name, ("a dog",)) for number, name in enumerate(names)]


def save(path, mode="RGB", size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def test_images_are_read_as_rgb_from_subfolders(tmp_path):
    for name, mode in (("val/b.png", "RGBA"), ("a.png", "L")):
        save(tmp_path / name, mode)
    found, folder = images("val/b.png", "a.png"), PictureFolder(tmp_path)
    check_present(found, folder)
    assert unreadable_images(found, folder) == {}
    assert [(picture.mode, picture.size) for picture in map(folder.load, found)] == [("RGB", (3, 2))] * 2


PHOTOS = [
    "000000000042.jpg",
    "val2017/000000000042.jpg",
    "train2017/000000000042.jpg",
    "COCO_val2014_000000000042.jpg",
    "val2014/COCO_val2014_000000000042.jpg",
    "train2014/COCO_train2014_000000000042.jpg",
]


@pytest.mark.parametrize("there", PHOTOS)
def test_photos_of_coco_are_found_under_their_other_names(tmp_path, there):
    path = save(tmp_path / there)
    save(tmp_path / "val2017" / "000000000043.jpg")
    for name in PHOTOS:
        assert PictureFolder(tmp_path).file(images(name)[0]) == path


def test_the_name_itself_comes_first(tmp_path):
    own = save(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    save(tmp_path / "000000000042.jpg")
    assert PictureFolder(tmp_path).file(images("val2014/COCO_val2014_000000000042.jpg")[0]) == own


def test_missing_images_are_counted_and_all_listed(tmp_path):
    save(tmp_path / "0.png")
    folder, listed = PictureFolder(tmp_path), tmp_path / "missing.txt"
    with pytest.raises(UserError, match=r"lacks 1 image: val/b\.png"):
        check_present(images("0.png", "val/b.png"), folder)
    names = [f"{number}.png" for number in range(30)]
    with pytest.raises(UserError, match=rf"lacks 29 images: 1\.png, .*5\.png, \.\.\.\. {listed} lists them all"):
        check_present(images(*names), folder, listed)
    assert listed.read_text().split() == names[1:]


def test_a_folder_of_other_images_does_not_belong_to_the_annotations(tmp_path):
    with pytest.raises(UserError, match=r"None of the 2 images .*a\.png was looked for, and no file is there"):
        check_present(images("a.png", "b.png"), PictureFolder(tmp_path))
    save(tmp_path / "other.png")
    with pytest.raises(UserError, match=r"do not belong together\. a\.png was looked for, and other\.png is there"):
        check_present(images("a.png", "b.png"), PictureFolder(tmp_path))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="image folder does not exist: .*none.*preprocess"):
        PictureFolder(tmp_path / "none")


def test_unreadable_images_are_returned_with_the_reason(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    whole = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    save(tmp_path / "good.png")
    folder = PictureFolder(tmp_path)
    found = unreadable_images(images("half.png", "good.png", "script.png", "gone.png"), folder)
    assert list(found) == [0, 2, 3]
    assert "half.png is not a readable image" in found[0] and "script.png is not a readable image" in found[2]
    assert "gone.png" in found[3] and "does not exist" in found[3]
    for image in images("half.png")[:1]:
        with pytest.raises(UserError, match="not a readable image"):
            folder.load(image)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", ["x/" * 2500 + "a.png", "a" * 256, "a.png/b.png", "\ud800.png"])
def test_a_name_that_no_file_can_have_is_missing(tmp_path, name):
    save(tmp_path / "a.png")
    folder = PictureFolder(tmp_path)
    assert not folder.has(images(name)[0])
    with pytest.raises(UserError, match="lacks 1 image"):
        check_present(images("a.png", name), folder)
