"""The recipe: all that a run needs, as a frozen tree. Equal recipes are equal runs."""

from __future__ import annotations

from collections.abc import Mapping

from cdmkit.cascade import Cascade, Stage
from cdmkit.component import option, table
from cdmkit.data.resize import Resize
from cdmkit.kinds import Source

SCHEMA = 1
"""The version of the recipe format that this cdmkit reads."""

SLUG = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""A name that is safe as a folder's, as a regular expression."""


@table
class Requires:
    """What must be installed."""

    cdmkit: str = option("", help='versions of cdmkit the recipe works with, such as ">=0.1"')
    plugins: tuple[str, ...] = option((), help='distributions it needs, such as "cdmkit-xla>=1"')


@table
class Validation:
    """Images that nothing is learned from."""

    source: Source = option(help="where validation images come from")


@table
class Data:
    """What every stage is trained on."""

    source: Source = option(help="where training images come from")
    classes: int = option(0, help="number of class labels; 0: none", ge=0)
    downsample: Resize = option(Resize.AREA, help="makes every stage's images from the stored ones")
    val: Validation | None = option(
        None, help="images for previews, bits per dimension and enlarging real images; none: training images stand in"
    )

    @property
    def unseen(self) -> Source:
        """Where images come from that are looked at and not learned from."""
        return self.source if self.val is None else self.val.source


@table
class Sample:
    """What `cdmkit run` samples when all stages are trained."""

    count: int = option(64, help="images from each last stage", ge=1)
    batch: int = option(64, help="images at a time", ge=1)


@table
class Recipe:
    """The root of a recipe file."""

    schema: int = option(help="version of the recipe format", ge=SCHEMA, le=SCHEMA)
    name: str = option(help="the recipe's name, also the folder of its runs: letters, digits, - and _")
    description: str = option("", help="what it is for, where its numbers come from")
    seed: int = option(0, help="every random draw follows from it", ge=0, le=2**63 - 1)
    requires: Requires = option(factory=Requires, help="what must be installed")
    data: Data = option(help="what every stage is trained on")
    stage: Mapping[str, Stage] = option(help="the stages of the cascade, by name")
    sample: Sample = option(factory=Sample, help="what is sampled at the end of a run")

    @property
    def cascade(self) -> Cascade:
        """The graph of the stages."""
        return Cascade.of(self.stage.values())
