"""Training images in WebDataset shards."""

from __future__ import annotations

from cdmkit.component import Component, component, option
from cdmkit.data.loader import Loader
from cdmkit.data.shards import open_shards
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Batches, DataCard, Source


@component("webdataset")
class WebDataset(Source):
    """Local WebDataset tars: `<key>.png` (or jpg, webp, bmp) with `<key>.cls`, or without any `.cls` for data without classes.

    All pictures are square and of one size, the largest that the cascade needs: stages shrink them. Every epoch is a full shuffle over all
    shards. Damaged or incomplete shards and pictures are errors that name the shard and the key; nothing is skipped.
    """

    shards: str = option(help='the .tar files: a path with wildcards or braces: "data/train-*.tar", "data/train-{00000..00007}.tar"')
    workers: int = option(2, help="threads that decode images", ge=1)

    def card(self) -> DataCard:
        """Index the shards and decode the first picture."""
        shards = open_shards(self.shards)
        return DataCard(resolution=shards.resolution, count=len(shards), classes=shards.classes, fingerprint=shards.fingerprint())

    def open(self, batch: int, rank: int, world: int, seed: int, position: int) -> Batches:
        """Batches from a pool of `workers` threads."""
        shards = open_shards(self.shards)
        return Loader(shards.read, len(shards), batch=batch, rank=rank, world=world, seed=seed, position=position, workers=self.workers)


@hookimpl
def cdmkit_components() -> list[type[Component]]:
    """The sources of stored images."""
    return [WebDataset]
