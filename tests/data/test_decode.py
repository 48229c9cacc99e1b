"""What is decoded, into which pixels, and what is refused."""

from __future__ import annotations

import io
import os
import resource
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from cdmkit.data import png
from cdmkit.data.decode import decode, decode_all
from cdmkit.errors import DataError

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "bad-inputs" / "images"


def picture(size: int = 24) -> npt.NDArray[np.uint8]:
    """A smooth colour picture."""
    y, x = np.mgrid[:size, :size] * (255 / (size - 1))
    return np.stack((x, y, 255 - x), axis=2).round().astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless(format: str, options: dict[str, Any]) -> None:
    """Lossless formats give the pixels that went in."""
    assert np.array_equal(decode(encoded(Image.fromarray(picture()), format, **options)), picture())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_jpeg_equals_pillow(options: dict[str, Any]) -> None:
    """The fast JPEG decoder gives Pillow's pixels."""
    data = encoded(Image.fromarray(picture()), "JPEG", **options)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey() -> None:
    """Grey pictures have three equal channels."""
    grey = picture()[..., 0]
    for format in ("JPEG", "PNG"):
        pixels = decode(encoded(Image.fromarray(grey), format))
        assert pixels.shape == (24, 24, 3)
        assert (pixels == pixels[..., :1]).all()
        assert abs(pixels[..., 0].astype(int) - grey).max() <= 3


def test_grey_of_16_bits() -> None:
    """0..65535 is scaled to 0..255, not clipped to white."""
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(values), "PNG"))[..., 0], np.arange(256).reshape(16, 16))


def test_cmyk() -> None:
    """CMYK JPEG comes out in about its colours."""
    data = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert abs(decode(data).astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    """What is transparent is white, whatever colour hides there; what is opaque stays."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    pixels = decode(encoded(image.convert(mode), "PNG"))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_half_transparent_is_blended() -> None:
    """Half of black over white is mid-grey."""
    assert abs(int(decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))[0, 0, 0]) - 127) <= 1


def test_palette() -> None:
    """A palette picture has its colours."""
    image = Image.fromarray(picture()).quantize(16)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_animation_is_its_first_frame() -> None:
    """Of an animated WebP the first frame counts."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = decode(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == (255, 0, 0)).all()


def test_exif_rotation_is_ignored() -> None:
    """A picture is taken as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture()[:, :12]), "JPEG", exif=exif)
    assert decode(data).shape == (24, 12, 3)


def test_bytes_behind_the_picture_do_no_harm() -> None:
    """Trailing bytes are not looked at."""
    data = encoded(Image.fromarray(picture()), "PNG")
    assert np.array_equal(decode(data + b"junk"), picture())


@pytest.mark.parametrize("format", ["GIF", "TIFF", "EPS", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(format: str) -> None:
    """Formats beyond the four are not decoded."""
    with pytest.raises(DataError, match="not a JPEG, PNG, WebP or BMP"):
        decode(encoded(Image.fromarray(picture()), format))


@pytest.mark.parametrize("data", [b"<svg width='9' height='9'/>", b"<!DOCTYPE html>", b"not an image", b"\x80\x04pickle", b"\xff"])
def test_no_image(data: bytes) -> None:
    """The error quotes how the bytes begin."""
    with pytest.raises(DataError, match="it begins with"):
        decode(data)


def test_empty() -> None:
    """No bytes are no picture."""
    with pytest.raises(DataError, match="empty"):
        decode(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated(format: str, share: float) -> None:
    """A picture that was cut off anywhere is refused, never filled up."""
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), format)
    with pytest.raises(DataError, match=r"damaged|truncated|begins with"):
        decode(data[: int(len(data) * share)])


def test_damaged_jpeg_scan() -> None:
    """A damaged scan is refused, where Pillow would return garbage."""
    data = bytearray(encoded(Image.fromarray(picture(64)), "JPEG", quality=95))
    middle = data.index(b"\xff\xda") + 200
    data[middle : middle + 40] = b"\xff\xd9" * 20
    with pytest.raises(DataError, match="JPEG"):
        decode(bytes(data))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [8193, 12000, 30000, 65000])
def test_huge_png_is_refused_by_its_header(side: int) -> None:
    """The claim of a size is enough: this file has no pixels at all."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    with pytest.raises(DataError, match="too large"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_huge_jpeg_is_refused_by_its_header() -> None:
    """A JPEG that claims 65500 x 65500 is refused before 12 GB are asked for."""
    data = bytearray(encoded(Image.fromarray(picture()), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    with pytest.raises(DataError, match="too large: 65500 x 65500"):
        decode(bytes(data))


def test_limit_of_pixels() -> None:
    """The limit is on width times height, inclusive."""
    data = encoded(Image.fromarray(picture(24)), "PNG")
    assert decode(data, max_pixels=576).shape == (24, 24, 3)
    with pytest.raises(DataError, match="24 x 24 pixels, more than 575"):
        decode(data, max_pixels=575)


REFUSED = {
    "empty.JPEG", "html.JPEG", "text.png", "eps.JPEG", "animated.gif", "truncated_half.JPEG", "no_eoi.JPEG", "bomb_30000x30000.png",
    "bomb_header_65500.JPEG", "Thumbs.db", ".DS_Store", "._good.JPEG",
}  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no bad inputs at {SHARED}; set CDMKIT_TEST_DATA")
def test_bad_inputs() -> None:
    """Of the collection of odd and broken images exactly the broken and the refused ones are errors."""
    failed = set()
    for path in SHARED.iterdir():
        try:
            pixels = decode(path.read_bytes())
        except DataError:
            failed.add(path.name)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
    assert failed == REFUSED


def together(files: list[bytes], size: int) -> tuple[npt.NDArray[np.uint8], dict[int, DataError]]:
    """The pixels of files, and what is wrong with some."""
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    return pixels, decode_all(files, pixels)


def test_many_at_once_equal_one_by_one() -> None:
    """Whatever their sorts, in any mixture: plain PNG, PNG with a palette, grey, JPEG, WebP."""
    image = Image.fromarray(picture())
    files = [
        encoded(image, "PNG"),
        encoded(image, "JPEG", quality=90),
        encoded(image.convert("P"), "PNG"),
        encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG"),
        encoded(image.convert("L"), "PNG"),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image, "WEBP", lossless=True),
        encoded(image, "BMP"),
    ]
    pixels, faults = together(files, 24)
    assert faults == {}
    assert np.array_equal(pixels, np.stack([decode(file) for file in files]))


@pytest.mark.parametrize("size", [24, 200])
def test_faults_of_many_are_told_by_place(size: int) -> None:
    """One that is cut, empty or of another size leaves the others as they are."""
    good = encoded(Image.fromarray(picture(size)), "PNG")
    files = [good, good[: len(good) // 2], b"", encoded(Image.fromarray(picture(size + 1)), "PNG"), good]
    pixels, faults = together(files, size)
    assert {row: str(fault).partition(":")[0] for row, fault in faults.items()} == {
        1: "damaged or truncated image",
        2: "the image is empty (0 bytes)",
        3: "wrong size",
    }
    assert all(np.array_equal(pixels[row], picture(size)) for row in (0, 4))


def test_a_filter_that_does_not_exist_spoils_its_own_image_alone() -> None:
    """Even where images are decoded as one stack."""
    lines = zlib.compress(bytes([7, *range(3)]))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", lines), (b"IEND", b"")]
    bad = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    good = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
    pixels, faults = together([good, bad, good], 1)
    assert list(faults) == [1]
    assert pixels[[0, 2]].reshape(2, 3).tolist() == [[1, 2, 3]] * 2


def test_plain_png_needs_no_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sort that data sets hold is decoded without `Image.open`, which threads wait for."""
    files = [encoded(Image.fromarray(picture()), "PNG")] * 3
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(together(files, 24)[0], np.stack([picture()] * 3))


def test_png_of_no_height_is_no_bomb() -> None:
    """A header without lines does not lift the limit on what is unpacked."""
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(256)), packer.flush()])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 0, 8, 2, 0, 0, 0)), (b"IDAT", bomb), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_another_size_is_refused_by_the_header(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is decoded: a legal image of 64 megapixels among small ones would else cost as much."""
    data = encoded(Image.fromarray(picture(40)), format)
    for decoder in ("unfiltered", "scanlines"):
        monkeypatch.setattr(png, decoder, None)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DataError, match="wrong size: the image is 40 x 40, but the first one is 24 x 24"):
        decode(data, size=(24, 24))


def test_jpeg_of_many_scans() -> None:
    """A file whose scans are repeated, each as costly as an image, is refused unread; an ordinary progressive one is not."""
    data = encoded(Image.fromarray(picture(1200)), "JPEG", progressive=True)
    assert decode(data).shape == (1200, 1200, 3)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="too many scans: 3"):
        decode(data[:-2] + data[last:-2] * 300 + data[-2:])


def test_damaged_cmyk() -> None:
    """Pillow would fill it with garbage."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8), "CMYK")
    data = encoded(image, "JPEG", quality=90)
    assert decode(data).shape == (64, 64, 3)
    with pytest.raises(DataError, match="damaged or truncated JPEG"):
        decode(data[: len(data) // 2])


def test_stray_bytes_between_segments() -> None:
    """They spoil nothing, and real cameras leave some. A scan that is cut is another matter."""
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    place = data.index(b"\xff\xdb")
    assert np.array_equal(decode(data[:place] + b"ab" + data[place:]), decode(data))
    with pytest.raises(DataError, match="damaged or truncated"):
        decode(data[:place] + b"ab" + data[place : len(data) // 2])


def test_too_large_is_refused_without_a_warning() -> None:
    """Pillow's own, which would be told of every image, has nothing to add."""
    data = encoded(Image.new("L", (10_000, 10_000)), "PNG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match="too large: 10000 x 10000"):
            decode(data)
    assert caught == []
