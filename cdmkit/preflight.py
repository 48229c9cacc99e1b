"""Looking at the data before anything is written: whether it is there, and fits the recipe."""

from __future__ import annotations

import attrs

from cdmkit.data.resize import Resize
from cdmkit.errors import DataError, RecipeError
from cdmkit.events import Emit, Warned
from cdmkit.kinds import DataCard, Source
from cdmkit.recipe import Recipe


@attrs.frozen
class Looked:
    """What the data is: that of training and, where there is one, that of validation."""

    train: DataCard
    val: DataCard | None

    @property
    def unseen(self) -> DataCard:
        """The images that are looked at and not learned from."""
        return self.val or self.train

    def tell(self, recipe: Recipe, emit: Emit) -> None:
        """Tell of what is left out, and of labels that no image has."""
        for card in (self.train, self.val):
            for skip in card.skips if card else ():
                emit(skip.event())
            for note in card.notes if card else ():
                emit(Warned(message=note))
        if 0 < self.train.classes < recipe.data.classes:
            emit(
                Warned(
                    message=f"data.classes = {recipe.data.classes}, but the largest label is {self.train.classes - 1}: "
                    "the network has room for labels that no image has"
                )
            )


def needs_data(recipe: Recipe) -> bool:
    """Whether a run looks at images: to train on, or to enlarge."""
    return any(stage.train.steps or stage.low_res for stage in recipe.cascade)


def look_at_data(recipe: Recipe) -> Looked:
    """Look at all data of a recipe. Raises DataError where it is not there, or does not fit the recipe's stages and classes or the other
    part of itself, and RecipeError where its images could not be made smaller.
    """
    train = _looked_at(recipe.data.source, recipe)
    if recipe.data.val is None:
        return Looked(train, None)
    val = _looked_at(recipe.data.val.source, recipe)
    for what, here, there in (("size", val.resolution, train.resolution), ("crop", val.crop, train.crop)):
        if here != there and here and there:
            raise DataError(f"validation images have the {what} {here}, but training images {there}: prepare both alike")
    return Looked(train, val)


def _looked_at(source: Source, recipe: Recipe) -> DataCard:
    card = source.card()
    resolutions = [stage.resolution for stage in recipe.cascade]
    largest = max(resolutions)
    if card.resolution % largest:
        raise DataError(
            f"the images are {card.resolution} x {card.resolution} pixels, but the largest stage makes {largest} x {largest}: "
            "they must be as large, or a multiple of it. Use larger images (`shapes` draws any: data.source.resolution) or smaller stages"
        )
    if recipe.data.downsample is Resize.NEAREST and min(resolutions) < card.resolution:
        raise RecipeError('data.downsample = "nearest" cannot shrink images, since that would alias: use "area", "bilinear" or "bicubic"')
    if recipe.data.classes and not card.classes:
        raise DataError(f"data.classes = {recipe.data.classes}, but the images have no labels: set data.classes = 0, or use labelled data")
    if 0 < recipe.data.classes < card.classes:
        where = f" (such as that of {card.largest})" if card.largest else ""
        raise DataError(
            f"data.classes = {recipe.data.classes}, but labels go up to {card.classes - 1}{where}: "
            f"set data.classes = {card.classes}, or 0 to ignore the labels"
        )
    return card
