"""Pictures as people see them: upright, 16 bits, transparent; what cannot be decoded has a reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the extra 'models' is not installed")

from PIL import Image

from jair.data.images import decode_image, read_image
from jair.data.sources import BadExample

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners() -> np.ndarray:
    """4 x 6 in four colours, no two orientations alike."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :3], pixels[:2, 3:], pixels[2:, :3] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(corners())
    read = np.asarray(decode_image(encoded(stored, exif=exif), "x"))
    assert np.array_equal(read, UPRIGHT[orientation](corners()))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0"])
def test_broken_exif_data_leave_the_pixels(exif: bytes) -> None:
    photo = Image.fromarray(corners())
    plain = decode_image(encoded(photo, "JPEG"), "x")
    assert np.array_equal(np.asarray(decode_image(encoded(photo, "JPEG", exif=exif), "x")), np.asarray(plain))


def test_a_photograph_is_upright_though_its_other_exif_data_are_broken() -> None:
    # Two entries: orientation 6, and a resolution as a byte, at which Pillow raises TypeError.
    entries = bytes.fromhex("0002 0112 0003 00000001 00060000 011a 0001 00000001 00000044 00000000")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + entries
    stored = Image.fromarray(corners())
    read = decode_image(encoded(stored, "JPEG", exif=exif), "x")
    plain = np.asarray(decode_image(encoded(stored, "JPEG"), "x"))
    assert np.array_equal(np.asarray(read), UPRIGHT[6](plain))


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_grey_of_16_bits_is_scaled(kind: str) -> None:
    deep = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    read = np.asarray(decode_image(encoded(Image.fromarray(deep), kind), "x"))
    assert read.shape == (64, 64, 3)
    assert np.abs(read - (deep / 257)[..., None]).max() <= 0.51
    assert (read[..., 0] == read[..., 1]).all()


def test_32_bits_are_not_taken_for_16() -> None:
    values = np.arange(256, dtype=np.int32).reshape(16, 16)
    read = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF"), "x"))
    assert np.array_equal(read[..., 0], values)


def test_what_is_transparent_shows_white() -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0], pixels[0, 1] = (255, 0, 0, 255), (0, 0, 0, 51)
    clear = Image.fromarray(pixels)
    expected = np.full((2, 3, 3), 255, np.uint8)
    expected[0, 0], expected[0, 1] = (255, 0, 0), 204
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(decode_image(encoded(clear, kind), "x")), expected)
    grey = Image.fromarray(np.array([[[0, 0], [10, 255]]], np.uint8))
    assert np.asarray(decode_image(encoded(grey), "x")).tolist() == [[[255] * 3, [10] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    for kind in ("PNG", "GIF"):
        read = np.asarray(decode_image(encoded(palette, kind, transparency=0), "x"))
        assert read.tolist() == [[[255] * 3, [9] * 3]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK"])
def test_whole_pictures_are_what_pillow_makes_of_them(mode: str) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).convert(mode)
    data = encoded(picture, "JPEG" if mode == "CMYK" else "PNG")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data, "x").tobytes() == expected.tobytes()
    assert decode_image(data, "x").mode == "RGB"


def test_too_large_is_not_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(corners())))
    assert read_image(path).size == (6, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadExample, match=r"a\.png: too large$"):
        read_image(path)


def test_whatever_a_decoder_raises_is_a_broken_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(corners()))
    for cut in range(0, len(data) - 20, 3):
        with pytest.raises(BadExample, match="x: broken image"):
            decode_image(data[:cut], "x")
    with pytest.raises(BadExample, match="missing image"):
        read_image(tmp_path)
    monkeypatch.setattr(Image, "open", lambda _: [][0])
    with pytest.raises(BadExample, match="x: broken image"):
        decode_image(data, "x")
