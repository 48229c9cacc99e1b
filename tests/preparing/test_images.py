"""One image: what becomes of it, and why not where it cannot be used."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cdmkit.data import decode as decoding
from cdmkit.data.crop import Crop
from cdmkit.data.decode import decode
from cdmkit.data.encode import Encoding
from cdmkit.errors import DataError
from cdmkit.kinds import Original, Originals, Preparer
from cdmkit.preparing import Settings
from cdmkit.preparing.images import Made, Maker, Outcome, Refused
from cdmkit.preparing.settings import Exif

SHARED = Path(os.environ.get("CDMKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "bad-inputs"


class Given(Preparer):
    """What it is given."""

    def look(self, path: Path) -> Originals:
        raise NotImplementedError

    def read(self, original: Original) -> bytes:
        """The place itself, or the error that it is."""
        if isinstance(original.place, Exception):
            raise original.place
        data: bytes = original.place
        return data


def made(data: object, **settings: Any) -> Outcome:
    (outcome,) = Maker(Given(), Settings(**settings).filled()).make_all([Original("x", 0, data)])
    return outcome


def drawn(height: int, width: int, format: str = "PNG", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("crop", Crop)
def test_cropped_and_encoded(crop: Crop, encoding: Encoding) -> None:
    """As the settings say."""
    data = drawn(50, 70)
    outcome = made(data, resolution=16, crop=crop, encoding=encoding)
    assert outcome == Made(encoding(crop(decode(data), 16)), encoding.extension, 16, enlarged=False)


def test_defaults_depend_on_the_resolution() -> None:
    """ADM's crop; lossless while that costs little."""
    small, large = Settings(resolution=64).filled(), Settings(resolution=65).filled()
    assert (small.crop, small.encoding) == (Crop.ADM, Encoding.PNG)
    assert (large.crop, large.encoding) == (Crop.ADM, Encoding.JPEG)


def test_small_images_are_enlarged_or_rejected() -> None:
    """`min_side` decides; the bound itself is large enough."""
    data = drawn(20, 90)
    assert made(data, resolution=20) == made(data, resolution=20, min_side=20)
    enlarged = made(data, resolution=21)
    assert isinstance(enlarged, Made)
    assert enlarged.enlarged
    assert made(data, resolution=21, min_side=21) == Refused("too small: 90 x 20, the short side below 21")


@pytest.mark.parametrize(("format", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp")])
def test_kept(format: str, extension: str) -> None:
    """Without a resolution the file stays as it is, if it is square."""
    data = drawn(24, 24, format)
    assert made(data) == Made(data, extension, 24, enlarged=False)
    assert made(drawn(24, 25, format)) == Refused("not square: 25 x 24")
    assert made(data, min_side=25) == Refused("too small: 24 x 24, the short side below 25")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif(orientation: int, format: str) -> None:
    """Applied as Pillow does, where it is wanted."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = drawn(30, 40, format, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    applied, ignored = made(data, resolution=16, exif=Exif.APPLY), made(data, resolution=16)
    assert isinstance(applied, Made)
    assert isinstance(ignored, Made)
    assert np.array_equal(decode(applied.data), Crop.ADM(upright, 16))
    assert np.array_equal(decode(ignored.data), Crop.ADM(decode(data), 16))


def test_damaged_exif_is_none() -> None:
    """The image is not."""
    data = drawn(30, 40, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert made(data, resolution=16, exif=Exif.APPLY) == made(data, resolution=16)


def test_too_many_pixels() -> None:
    """`max_pixels` is the limit of a single image."""
    data = drawn(30, 40)
    assert isinstance(made(data, resolution=16, max_pixels=1200), Made)
    refused = made(data, resolution=16, max_pixels=1199)
    assert isinstance(refused, Refused)
    assert refused.cause.startswith("too large: 40 x 30")


def wrapped() -> DataError:
    error = DataError("cannot be read: gone")
    error.__cause__ = OSError(errno.EIO, "gone")
    return error


@pytest.mark.parametrize(
    ("place", "refused"),
    [
        (DataError("too odd"), Refused("too odd")),
        (wrapped(), Refused("cannot be read: gone", passing=True)),
        (OSError(errno.EIO, "Input/output error", "/secret/place"), Refused("cannot be read: Input/output error", passing=True)),
        (OSError("no number"), Refused("cannot be read: no number", passing=True)),
        (MemoryError(), Refused("too little memory to decode it", passing=True)),
        (DataError("lies at <object at 0x7f001234>"), Refused("lies at <object>")),
        (b"", Refused("the image is empty (0 bytes)")),
    ],
)
def test_what_cannot_be_read(place: object, refused: Refused) -> None:
    """Is refused with its cause, equal in every run. Where the disk was at fault, it may be read another time."""
    assert made(place, resolution=16) == refused


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), IndexError("x")])
def test_a_decoder_that_stumbles(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over whatever: the image is damaged, and no reason to stop."""

    def stumble(*_: object) -> None:
        raise error

    monkeypatch.setattr(decoding, "_decode_png", stumble)
    refused = made(drawn(9, 9), resolution=16)
    assert isinstance(refused, Refused)
    assert refused.cause.startswith(f"damaged image: {type(error).__name__}")


def test_defects_are_not_images_at_fault() -> None:
    """What a preparer does wrong is no reason to leave out images."""
    with pytest.raises(TypeError):
        made(TypeError("a defect"), resolution=16)


def bad_inputs() -> list[dict[str, Any]]:
    path = SHARED / "manifest.json"
    told: dict[str, list[dict[str, Any]]] = json.loads(path.read_text("utf-8")) if path.exists() else {"images": []}
    return told["images"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the odd images of shared/data/bad-inputs are not here")
@pytest.mark.parametrize("entry", bad_inputs(), ids=lambda entry: entry["file"])
def test_bad_inputs(entry: dict[str, Any]) -> None:
    """Accepted or rejected as the collection says, and what is accepted becomes a square."""
    outcome = made((SHARED / "images" / entry["file"]).read_bytes(), resolution=32, min_side=16)
    expected = str(entry["expect"])
    if expected.startswith("accept"):
        assert isinstance(outcome, Made)
    elif expected.startswith(("reject", "ignored")):  # what is ignored is not listed in the first place
        assert isinstance(outcome, Refused)
    if isinstance(outcome, Made):
        assert decode(outcome.data).shape == (32, 32, 3)


def test_the_limit_is_the_decoders() -> None:
    """Data sets are prepared by the limit they are read with."""
    assert Settings().max_pixels == decoding.MAX_PIXELS
