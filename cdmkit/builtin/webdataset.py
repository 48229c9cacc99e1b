"""Training images in WebDataset shards."""

from __future__ import annotations

from cdmkit.component import Binds, Component, component, option
from cdmkit.data.decode import MAX_PIXELS
from cdmkit.data.loader import Loader
from cdmkit.data.order import BlockOrder, Order
from cdmkit.data.shards import Shards, open_shards
from cdmkit.data.skips import Damaged, Tolerance
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Batches, DataCard, Source


@component("webdataset")
class WebDataset(Source):
    """WebDataset tars: `<key>.png` (or jpg, webp, bmp) with `<key>.cls`, or without any `.cls` for data without classes.

    All pictures are square and of one size, the largest that the cascade needs: stages shrink them. `cdmkit data prepare` makes such
    shards. Every epoch is a full shuffle over all of them, unless `mix` says otherwise. Shards at a URL are fetched into a cache when their
    images are needed. Damaged or incomplete shards and pictures are errors that name the shard and the key, or are left out: the next good
    picture stands in for each, so that batches stay full and resuming stays exact.
    """

    shards: str = option(
        help='the .tar files, a path or URL with wildcards (paths only) or braces: "data/train-*.tar", "data/train-{00000..00007}.tar"; '
        "or a list of them: dataset.json, _info.json (timm), sizes.json (open_clip), or one of wids"
    )
    split: str = option("", help='the part of a list to read, such as "train", where the list has several')
    workers: int = option(2, help="threads that decode images; 0: the training thread does", ge=0)
    mix: int = option(
        0, binds=Binds.TRAINING, help="shards that are shuffled into each other at a time, for slow disks and servers; 0: all", ge=0
    )
    damaged: Damaged = option(Damaged.RAISE, help="what becomes of samples that cannot be used")
    max_skipped: float = option(
        0.001, help='with damaged = "skip": the share of samples beyond which that is an error all the same', ge=0, le=1
    )
    max_pixels: int = option(MAX_PIXELS, help="larger pictures are refused before they are decoded", ge=1)
    cache: float = option(0.0, help="gigabytes of shards fetched from URLs that are kept on this machine; 0: all", ge=0)

    def __attrs_post_init__(self) -> None:
        if self.cache and not self.mix:
            raise ValueError("cache needs mix: a full shuffle reads from all shards at any time, so none can be let go of")

    def card(self) -> DataCard:
        """Index the shards and decode the first picture."""
        shards = self._opened()
        return DataCard(
            resolution=shards.resolution,
            count=len(shards),
            classes=shards.classes,
            fingerprint=shards.fingerprint(),
            crop=shards.crop,
            largest=shards.largest if shards.classes else "",
            notes=tuple(shards.notes),
            skips=tuple(shards.skips.take()),
        )

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        """Batches from a pool of `workers` threads."""
        shards = self._opened()
        order = BlockOrder(shards.lengths, seed, self.mix, shards.expect) if self.mix else Order(len(shards), seed)
        return Loader(
            shards.read,
            order,
            batch=batch,
            rank=rank,
            world=world,
            position=position,
            workers=self.workers,
            skips=shards.skips,
            where=shards.where,
        )

    def _opened(self) -> Shards:
        return open_shards(self.shards, self.split, Tolerance(self.damaged, self.max_skipped), self.max_pixels, int(self.cache * 1e9))


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The sources of stored images."""
    return [WebDataset]
