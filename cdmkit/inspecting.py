"""What is in a data set, for people to look at: counts, sizes, pictures, and what a recipe's augmentations do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from torch import Tensor

from cdmkit.cascade import LowRes, Stage
from cdmkit.data.decode import decode
from cdmkit.data.find import read_list
from cdmkit.data.grid import write_grid
from cdmkit.data.listing import Listing
from cdmkit.data.pixels import to_float
from cdmkit.data.resize import Resize
from cdmkit.data.shards import Shards
from cdmkit.draws import Draw, Stream
from cdmkit.errors import DataError
from cdmkit.kinds import Source
from cdmkit.recipe import Recipe

_GRID = 16
"""Pictures of a data set that are shown, 4 x 4."""

_COLUMNS = 8
"""Pictures whose augmentations are shown."""

_LOOKED_AT = 256
"""Pictures that are decoded to tell their size."""


@attrs.frozen
class Inspected:
    """What a set of shards holds."""

    images: int
    shards: int
    bytes: int
    """Of all images, as they are stored."""
    file_bytes: tuple[int, int, int]
    """Of one image: the smallest, the median and the largest."""
    sizes: Mapping[str, int]
    """How many of the pictures that were decoded, spread over all, have which size: "64 x 64"."""
    broken: int
    """How many of those could not be decoded."""
    per_class: Sequence[int]
    """Images of each label; empty where there are none."""

    def table(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return attrs.asdict(self)


def inspect(shards: Shards, grid: Path) -> Inspected:
    """Look at shards, and write a grid of pictures, spread over all of them. Raises DataError where none can be decoded."""
    count = len(shards)
    stored = shards.stored_bytes()
    pictures, sizes, broken = [], dict[str, int](), 0
    for index in dict.fromkeys(np.linspace(0, count - 1, min(count, _LOOKED_AT)).round().astype(int).tolist()):
        try:
            pixels = decode(shards.encoded(index))
        except DataError:
            broken += 1
            continue
        name = f"{pixels.shape[1]} x {pixels.shape[0]}"
        sizes[name] = sizes.get(name, 0) + 1
        pictures.append(pixels)
    if not pictures:
        raise DataError(f"none of {broken} images can be decoded, such as {shards.where(0)}")
    alike = [torch.from_numpy(each).permute(2, 0, 1) for each in pictures if each.shape == pictures[0].shape]
    shown = [alike[n] for n in dict.fromkeys(np.linspace(0, len(alike) - 1, min(len(alike), _GRID)).round().astype(int).tolist())]
    write_grid(grid, torch.stack(shown), columns=4)
    return Inspected(
        images=count,
        shards=len(shards.lengths),
        bytes=int(stored.sum()),
        file_bytes=(int(stored.min()), int(np.median(stored)), int(stored.max())),
        sizes=sizes,
        broken=broken,
        per_class=torch.bincount(shards.labels.clamp(min=-1) + 1)[1:].tolist() if shards.classes else [],
    )


def show_images(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Write what a recipe's stages are trained on: a grid of each stage's images and, of those that augment, one that shows what that does.

    An augmented stage has rows in threes: images at low resolution, the same augmented as when training, and the images it is to make of
    them. Returns the grids by what they show.
    """
    images, _, positions = _first(recipe.data.source, recipe.seed)
    pixels, grids = to_float(images), {}
    for stage in recipe.cascade:
        grids[stage.name] = folder / f"{stage.name}.png"
        write_grid(grids[stage.name], recipe.data.downsample(pixels, stage.resolution), columns=_COLUMNS)
        enlarges = stage.enlarges(recipe.cascade.parent(stage))
        if enlarges is not None and stage.augment:
            low_res = recipe.data.downsample(pixels, enlarges.resolution)
            augmented = _augmented(stage, enlarges, low_res, recipe.seed, positions)
            low, augmented = (Resize.NEAREST(row, stage.resolution) for row in (low_res, augmented))
            grids[f"{stage.name}, augmented"] = path = folder / f"{stage.name}-augmented.png"
            write_grid(path, torch.cat((low, augmented, recipe.data.downsample(pixels, stage.resolution))), columns=_COLUMNS)
    return grids


def _first(source: Source, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first images that training sees."""
    with source.open(_COLUMNS, 0, 1, seed, 0) as batches:
        return next(batches)


def _augmented(stage: Stage, enlarges: LowRes, low_res: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Low-resolution images as the stage sees them when it is trained, with the same draws."""
    for number, augmentation in enumerate(stage.augment):
        draw = Draw(Stream.of(seed, stage.name, "augment", number), positions)
        low_res, _ = augmentation.train(low_res, enlarges.schedule.process(), draw)
    return low_res


class Split(NamedTuple):
    """A part of a data set, and how it is opened."""

    name: str
    pattern: str
    split: str
    classes: Sequence[str]
    """The names of its labels, where they are known."""


def splits_of(data: str, split: str = "") -> list[Split]:
    """Each split of a folder or list of shards, or one alone; the only one of a pattern.

    Raises DataError where a folder has no list, or there is no such split.
    """
    found = read_list(data)
    if found is None:
        return [Split(split or "images", data, split, ())]
    path, text = found
    listing = Listing.parse(text, str(path))
    if split:
        listing.of(split, str(path))
    return [Split(name or "images", str(path), name, listing.classes) for name in listing.splits if not split or name == split]
