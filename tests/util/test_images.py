"""Pictures: the same pixels as Pillow gives, no programs started, and no warnings."""

import io
import random
import warnings

import pytest
from PIL import Image, UnidentifiedImageError

from cobra.util.images import FORMATS, check_decodes, read_rgb


def gradient(mode, size=(31, 17)):
    picture = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn).resize(size) for turn in range(3)])
    return picture.convert(mode)


SAVED = {
    "baseline.jpg": ("RGB", {"quality": 90}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "gray.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "palette.png": ("P", {}),
    "clear.png": ("RGBA", {}),
    "deep.png": ("I;16", {}),
    "a.gif": ("P", {}),
    "a.webp": ("RGB", {}),
    "a.bmp": ("RGB", {}),
    "cmyk.tiff": ("CMYK", {}),
    "a.ppm": ("RGB", {}),
}


@pytest.mark.parametrize("name", SAVED)
def test_the_pixels_are_those_of_pillow(tmp_path, name):
    mode, options = SAVED[name]
    gradient("L" if mode == "I;16" else mode).convert(mode).save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as image:
        expected = image.convert("RGB")
    found = read_rgb(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", (31, 17))
    assert found.tobytes() == expected.tobytes()


def test_exif_does_not_turn_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient("RGB").save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").size == (31, 17)


def test_the_content_decides_and_not_the_name(tmp_path):
    gradient("RGB").save(tmp_path / "a.jpg", "PNG")
    assert read_rgb(str(tmp_path / "a.jpg")).tobytes() == gradient("RGB").tobytes()


@pytest.mark.parametrize("kind", ["EPS", "DDS"])
def test_formats_outside_the_list_are_not_opened(tmp_path, kind):
    assert kind not in FORMATS
    gradient("RGB").save(tmp_path / "a.png", kind)
    with pytest.raises(UnidentifiedImageError):
        read_rgb(tmp_path / "a.png")


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rgb(tmp_path / "absent.png")


def test_a_cut_file_is_an_error(tmp_path):
    gradient("RGB", (200, 200)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        read_rgb(tmp_path / "a.jpg")


def test_bombs_are_errors_and_large_pictures_are_not_even_warnings(tmp_path, monkeypatch):
    gradient("RGB", (20, 15)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
        assert read_rgb(tmp_path / "a.png").size == (20, 15)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 149)
        with pytest.raises(Image.DecompressionBombError):
            read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "gray", "cmyk", "png"])
def test_the_quick_check_finds_what_decoding_finds(tmp_path, kind):
    draw = random.Random(kind)
    picture = Image.effect_noise((120, 90), 60).convert({"gray": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if kind == "png" else "JPEG", progressive=kind == "progressive")
    whole = buffer.getvalue()
    broken = [whole[: draw.randrange(len(whole))] for _ in range(40)]
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 5, 50])):
            content[draw.randrange(2, len(content))] = draw.randrange(256)
        broken.append(bytes(content))
    path = tmp_path / "picture"

    def passes(check) -> bool:
        try:
            check(path)
        except Exception:
            return False
        return True

    found = []
    for content in [whole, *broken]:
        path.write_bytes(content)
        found.append(passes(read_rgb))
        assert passes(check_decodes) == found[-1]
    assert found[0] and not all(found)
