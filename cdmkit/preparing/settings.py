"""What shards are made of an image, and how they are cut: all that the bytes of a data set depend on beside its source."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import attrs

from cdmkit.component import evolve, option, table
from cdmkit.data.crop import Crop
from cdmkit.data.decode import MAX_PIXELS
from cdmkit.data.encode import Encoding
from cdmkit.errors import UsageError

_LOSSLESS = 64
"""Up to this resolution PNG is the default: JPEG would save half of little."""


class Exif(Enum):
    """What becomes of a camera's note on which way up a picture is."""

    IGNORE = "ignore"
    """As the reference pipelines of ImageNet do."""
    APPLY = "apply"


@table
class Settings:
    """How a data set is made. Equal settings, sources and versions of the tools give equal bytes."""

    resolution: int | None = option(
        None,
        help="side S of the square images; without it, every file is kept as it is, if it is square and of the size of the others",
        ge=1,
        le=8192,
    )
    crop: Crop | None = option(None, help="the way to the square; adm if there is a resolution")
    min_side: int = option(0, help="images whose short side is below are rejected; 0 enlarges the small ones", ge=0)
    encoding: Encoding | None = option(None, help=f"how images are stored; png up to {_LOSSLESS} pixels, jpeg above")
    per_shard: int = option(10_000, help="images per shard", ge=1)
    min_shards: int = option(1, help="make at least this many shards of each split, with fewer images in each", ge=1)
    seed: int = option(0, help="decides the order that images are shuffled into")
    max_pixels: int = option(MAX_PIXELS, help="larger images are rejected unread", ge=1)
    exif: Exif = option(Exif.IGNORE, help="whether to turn images as their EXIF data say")
    license: str = option("", help="under what terms the images are to be had: noted in dataset.json")

    def filled(self) -> Settings:
        """The same with its defaults filled in. Raises UsageError where options contradict each other."""
        if self.resolution is None:
            given = {"crop": self.crop, "encoding": self.encoding, "exif": self.exif if self.exif is not Exif.IGNORE else None}
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"--{name} goes with --resolution: without it, files are kept as they are")
            return self
        encoding = self.encoding or (Encoding.PNG if self.resolution <= _LOSSLESS else Encoding.JPEG)
        return evolve(self, crop=self.crop or Crop.ADM, encoding=encoding)

    def plain(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return plain(self)


def plain(value: Any) -> dict[str, Any]:
    """The options of a component or table as JSON gives them back: enumerations as their values, tuples as lists."""
    values = attrs.asdict(value, value_serializer=lambda _self, _field, item: item.value if isinstance(item, Enum) else item)
    made: dict[str, Any] = json.loads(json.dumps(values))
    return made
