"""Pictures: the pixels that a viewer shows, no programs started, no waiting, and no warnings."""

import io
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from cobra.util.images import FORMATS, BadImageError, check_decodes, read_header, read_rgb, read_upright
from cobra.util.rgb import to_rgb


def gradient(mode, size=(31, 17)):
    picture = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn).resize(size) for turn in range(3)])
    return picture.convert(mode)


SAVED = {
    "baseline.jpg": ("RGB", {"quality": 90}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "gray.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "palette.png": ("P", {}),
    "opaque.png": ("RGBA", {}),
    "a.gif": ("P", {}),
    "a.webp": ("RGB", {}),
    "a.bmp": ("RGB", {}),
    "cmyk.tiff": ("CMYK", {}),
    "a.ppm": ("RGB", {}),
}


@pytest.mark.parametrize("name", SAVED)
def test_the_pixels_are_those_of_pillow(tmp_path, name):
    mode, options = SAVED[name]
    gradient(mode).save(tmp_path / name, **options)
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
    with pytest.raises(BadImageError, match="it is "):
        read_rgb(tmp_path / "a.png")


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rgb(tmp_path / "absent.png")


def test_a_cut_file_is_an_error(tmp_path):
    gradient("RGB", (200, 200)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImageError, match="breaks off before its end.*truncated"):
        read_rgb(tmp_path / "a.jpg")


def test_bombs_are_errors_and_large_pictures_are_not_even_warnings(tmp_path, monkeypatch):
    gradient("RGB", (20, 15)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
        assert read_rgb(tmp_path / "a.png").size == (20, 15)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 149)
        with pytest.raises(BadImageError, match="300 pixels"):
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


FAULTS = Path(__file__).parents[1] / "faults"


def line_on_clear(mode):
    """A black line on a transparent ground whose hidden colour is black, 4 x 4, in a mode with transparency."""
    clear = Image.new("LA", (4, 4))
    clear.paste((0, 255), (0, 1, 4, 2))
    if mode in ("P", "PA"):
        picture = Image.new(mode, (4, 4), 1)
        picture.putpalette([0] * 6)
        if mode == "P":
            picture.info["transparency"] = 1
        picture.paste(0 if mode == "P" else (0, 255), (0, 1, 4, 2))
        if mode == "PA":
            picture.putalpha(clear.getchannel("A"))
        return picture
    if mode in ("La", "RGBa"):
        return clear.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    return clear.convert(mode)


WHITE_WITH_LINE = [[255] * 3] * 4, [[0] * 3] * 4, [[255] * 3] * 4, [[255] * 3] * 4


@pytest.mark.fault("F5")
@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "P", "PA"])
def test_transparent_pixels_are_white_in_every_mode(mode):
    picture = line_on_clear(mode)
    before = picture.tobytes()
    assert picture.mode == mode and picture.has_transparency_data
    assert np.array_equal(np.asarray(to_rgb(picture)), np.array(WHITE_WITH_LINE))
    assert picture.tobytes() == before


@pytest.mark.fault("F5")
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_one_colour_that_stands_for_transparent_is_white(tmp_path, mode):
    stored = np.array([[0, 40, 0]])
    picture = (
        Image.fromarray((stored * 257).astype(np.uint16))
        if mode == "I;16"
        else Image.fromarray(stored.astype(np.uint8)).convert(mode)
    )
    picture.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    middle = 0 if mode == "1" else 40
    expected = [255, 255, 255] if mode == "1" else [255, middle, 255]
    assert np.asarray(read_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == expected


@pytest.mark.fault("F5")
def test_what_is_half_transparent_is_half_white_and_what_is_opaque_as_pillow_has_it():
    half = Image.new("RGBA", (1, 1), (0, 0, 100, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 177)
    opaque = gradient("RGB").convert("RGBA")
    assert to_rgb(opaque).tobytes() == opaque.convert("RGB").tobytes()


@pytest.mark.fault("F5")
@pytest.mark.parametrize("name", ["a.png", "a.webp", "la.png", "p.gif", "p.png"])
def test_black_drawings_stay_black_on_white(name):
    pixels = np.asarray(read_rgb(FAULTS / "alpha-black-lines" / "images" / name))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert 230 < pixels.mean() < 250 and pixels.min() == 0


WIDE = [
    ("I;16", np.uint16, [0, 257, 32896, 65535], [0, 1, 128, 255]),
    ("I", np.int32, [0, 257, 32896, 65535], [0, 1, 128, 255]),
    ("I", np.int32, [0, 1, 128, 255], [0, 1, 128, 255]),
    ("I", np.int32, [-5, 0, 2**30, 2**31 - 1], [0, 0, 128, 255]),
    ("F", np.float32, [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
    ("F", np.float32, [0, 1, 128, 255], [0, 1, 128, 255]),
    ("F", np.float32, [-1, float("nan"), float("inf"), 1], [0, 0, 0, 255]),
    ("F", np.float32, [0, 0, 0, 0], [0, 0, 0, 0]),
]


@pytest.mark.fault("F5")
@pytest.mark.parametrize(("mode", "dtype", "stored", "expected"), WIDE)
def test_wide_numbers_keep_their_levels(tmp_path, mode, dtype, stored, expected):
    Image.fromarray(np.array([stored], dtype)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode
    assert np.asarray(read_rgb(tmp_path / "a.tif"))[0, :, 2].tolist() == expected


@pytest.mark.fault("F5")
def test_a_dark_picture_of_16_bits_is_dark():
    assert read_rgb(io.BytesIO(b"P5\n2 1\n65535\n\x00\x00\x00\xff")).getextrema()[0] == (0, 1)


BASE = (204, 220, 218)
# Size and mean colour of what is opened, or the words of the refusal.
ZOO = {
    "a.avif": ((120, 90), BASE),
    "anim.gif": ((60, 40), (203, 191, 186)),
    "anim.webp": ((60, 40), (203, 191, 186)),
    "avif_named.jpg": ((120, 90), BASE),
    "base.jpg": ((120, 90), BASE),
    "bit.png": ((120, 90), (216, 216, 216)),
    "cmyk.jpg": ((120, 90), BASE),
    "crc.png": ((120, 90), BASE),
    "cut20.jpg": "it breaks off before its end",
    "cuthalf.jpg": "it breaks off before its end",
    "empty.jpg": "it is empty",
    "exif6.jpg": ((120, 60), (200, 0, 0)),
    "html.jpg": "it is a web page",
    "ico.ico": ((64, 48), BASE),
    "lab.tif": ((120, 90), BASE),
    "mpo.jpg": ((60, 40), (203, 191, 186)),
    "noeoi.jpg": ((120, 90), BASE),
    "one.png": ((1, 1), (9, 9, 9)),
    "prog.jpg": ((120, 90), BASE),
    "progcut.jpg": "it breaks off before its end",
    "t.tga": ((120, 90), BASE),
    "thin.png": ((1, 5000), (9, 9, 9)),
    "three.png": ((3, 1), (9, 9, 9)),
    "trail.jpg": ((120, 90), BASE),
    "webp_named.jpg": ((120, 90), BASE),
}


def test_the_zoo_is_the_table():
    assert {path.name for path in (FAULTS / "zoo" / "images").iterdir()} == set(ZOO)


@pytest.mark.fault("F17")
@pytest.mark.parametrize("name", ZOO)
def test_every_picture_of_the_zoo_is_opened_or_refused_in_words(name):
    path = FAULTS / "zoo" / "images" / name
    if isinstance(ZOO[name], str):
        for look in (read_rgb, check_decodes):
            with pytest.raises(BadImageError, match=ZOO[name]):
                look(path)
        return
    size, colour = ZOO[name]
    picture = read_rgb(path)
    check_decodes(path)
    assert (picture.mode, picture.size, read_header(path)[1:3]) == ("RGB", size, size)
    assert np.abs(np.asarray(picture).mean((0, 1)) - colour).max() < 2


@pytest.mark.fault("F17")
def test_a_jpeg_without_its_end_has_the_pixels_of_the_whole():
    folder = FAULTS / "zoo" / "images"
    assert read_rgb(folder / "noeoi.jpg").tobytes() == read_rgb(folder / "base.jpg").tobytes()


CUT = {
    "a.png": {},
    "a.gif": {},
    "a.webp": {},
    "a.avif": {},
    "a.bmp": {},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "a.ppm": {},
    "a.jp2": {},
    "a.tga": {},
    "rle.tga": {"compression": "tga_rle"},
}


@pytest.mark.fault("F17")
@pytest.mark.parametrize("name", CUT)
def test_of_every_format_a_file_that_breaks_off_is_refused_and_told(tmp_path, name):
    noise = np.random.default_rng(2).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80)).save(tmp_path / name, **CUT[name])
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.98):
        with pytest.raises(BadImageError, match="breaks off"):
            read_rgb(io.BytesIO(whole[: int(len(whole) * share)]))


STRANGERS = {
    b"<!DOCTYPE html><p>404": "web page",
    b"\xef\xbb\xbf\n <HTML>": "web page",
    b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
    b"\x00\x00\x00\x18ftypheic\x00\x00": "HEIC",
    b'<svg xmlns="http://www.w3.org/2000/svg"/>': "SVG",
    b'{"error": "not found"}': "JSON",
    b"%PDF-1.7": "PDF",
    b"PK\x03\x04": "archive",
    b"GIF": "none of the formats",
}


@pytest.mark.fault("F17")
@pytest.mark.parametrize("content", STRANGERS)
def test_what_is_no_picture_is_called_by_its_name(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImageError, match=STRANGERS[content]):
        read_rgb(tmp_path / "a.jpg")
    with pytest.raises(BadImageError, match=STRANGERS[content]):
        read_rgb(io.BytesIO(content))


@pytest.mark.fault("C1")
@pytest.mark.parametrize("look", [read_rgb, check_decodes, read_header])
def test_what_cannot_be_a_picture_file_is_refused_without_waiting(tmp_path, look):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(2**30 + 1)
    refused = {"pipe.png": "not a regular file", "folder.png": "a folder", "loop.png": "symbolic links"}
    refused |= {"large.jpg": "1,073,741,825 bytes", "x" * 256: "name too long", "a\0b": "null", "\ud800": "surrogate"}
    for name, words in refused.items():
        with pytest.raises(BadImageError, match=f"(?i){words}"):
            look(f"{tmp_path}/{name}")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "file" / "a.png")


# What a file's EXIF orientation has been done to, so that following it gives the picture back.
STORED_AS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_270,
}


def with_orientation(number, kind, mode="RGB"):
    picture = gradient("RGB").convert(mode)
    stored = picture.transpose(STORED_AS[number]) if number in STORED_AS else picture
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = number
    options = {"MPO": {"save_all": True, "append_images": [stored]}, "WEBP": {"lossless": True}}
    stored.save(data, kind, exif=exif, **options.get(kind, {}))
    return picture.convert("RGB"), stored.convert("RGB"), data


@pytest.mark.fault("F6")
@pytest.mark.parametrize("number", [0, 1, *STORED_AS, 9])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"])
def test_pictures_are_turned_as_viewers_turn_them(kind, number):
    picture, stored, data = with_orientation(number, kind)
    found, turned = read_upright(data)
    # Pillow turns TIFF before anybody asks.
    assert turned == (number in STORED_AS and kind != "TIFF")
    assert found.size == picture.size and read_rgb(data).size == (picture if kind == "TIFF" else stored).size
    difference = max(high for _, high in ImageChops.difference(found, picture).getextrema())
    assert difference == 0 if kind in ("PNG", "WEBP", "TIFF") else difference < 60


@pytest.mark.fault("F6")
@pytest.mark.parametrize("mode", ["P", "L", "RGBA"])
def test_other_modes_are_turned_too(mode):
    picture, _, data = with_orientation(6, "PNG", mode)
    assert read_upright(data)[0].size == picture.size


@pytest.mark.fault("F6")
@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_turns_nothing(kind, exif):
    data = io.BytesIO()
    gradient("RGB").save(data, kind, exif=b"Exif\0\0" + exif)
    assert read_upright(data)[0].tobytes() == read_rgb(data).tobytes()
