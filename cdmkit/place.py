"""Where a run goes, and whether one may be gone on with: what it was begun with is compared with what it is given now."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import attrs
import tomli

from cdmkit.component import Binds
from cdmkit.errors import RecipeError
from cdmkit.plugins import Plugins
from cdmkit.recipe import Recipe, diff, loose, ordering, to_table, to_toml
from cdmkit.runs import Run


@attrs.frozen
class Given:
    """What a run is given beside its recipe."""

    images: str
    """The fingerprint of the training images; empty where none are looked at."""
    weights: Mapping[str, str]
    """The SHA-256 of the file that each stage begins with, by stage."""

    def note(self, run: Run) -> None:
        """Write it into run.json."""
        run.note("images", self.images)
        run.note("weights", dict(self.weights))


@attrs.frozen(kw_only=True)
class Place:
    """Where a run goes: a folder of its own, or one to go on in."""

    root: Path
    """New runs are made in `root`/<recipe's name>/."""
    folder: Path | None = None
    """This folder instead, new or (with `resume`) with a run in it."""
    resume: bool = False
    """Go on with the run in `folder`, or with the newest of this recipe."""
    force: bool = False
    """Take over a lock that another machine holds."""
    allow_recipe_change: bool = False
    """Go on although the recipe is another one; stages it changes are trained anew."""
    command: tuple[str, ...] = ()
    """The command line, for the record."""

    @contextlib.contextmanager
    def opened(self, recipe: Recipe, given: Given, recipe_file: Path, plugins: Plugins) -> Iterator[Run]:
        """The run, locked; its resolved recipe is written before anything else happens."""
        text, resolved = recipe_file.read_text(encoding="utf-8"), to_toml(recipe)
        if not self.resume:
            versions = {plugin.identity.distribution: plugin.identity.version for plugin in plugins.loaded if plugin.identity.distribution}
            with Run.create(self.root, recipe.name, self.folder, command=self.command, seed=recipe.seed, plugins=versions) as run:
                given.note(run)
                run.write_recipe(text, resolved)
                yield run
            return
        with Run.resume(self.root, recipe.name, self.folder, force=self.force) as run:
            before = {**run.resolved_recipe(), "images": run.facts.get("images"), "weights": run.facts.get("weights", {})}
            now, lean = ({**table, **attrs.asdict(given)} for table in (tomli.loads(resolved), to_table(recipe, defaults=False)))
            changes = diff(before, now, lean)
            if changes:
                free = {f"stage.{stage.name}.{key}" for stage in recipe.cascade for key in loose(stage, Binds.TRAINING)}
                self._admit(changes, run, free, {f"data.source.{key}" for key in ordering(recipe.data.source)})
                given.note(run)
                run.write_recipe(text, resolved)
            yield run

    def _admit(self, changes: list[str], run: Run, free: Collection[str], bound: Collection[str]) -> None:
        """Raise RecipeError unless a run may go on with these changes of its recipe, images and weights. free: keys that bind nothing;
        bound: those of the source that do, though the images are the same.
        """
        same = {what for what in ("images", "weights") if not any(change.startswith(what) for change in changes)}
        keys = [(change, change.partition(":")[0]) for change in changes]
        grave = [change for change, key in keys if key in bound or (key not in free and not harmless(change, same))]
        if grave and not self.allow_recipe_change:
            listed = "\n  ".join(grave)
            raise RecipeError(
                f"the recipe or its data is not what {run.path} was begun with:\n  {listed}\n"
                "Take the change back, start a new run without --resume, or go on with --allow-recipe-change: "
                "what a stage has learned is removed where the change makes it another."
            )
        run.note("recipe_changes", [*run.facts.get("recipe_changes", ()), *changes])


_HARMLESS = re.compile(
    r"description|requires\..*|sample\..*|data\.val(\..*)?"
    r"|stage\.[^.]+\.(backend\.device|train\.(steps|log_every|sample_every|checkpoint_every|keep))"
)


def harmless(change: str, same: Collection[str]) -> bool:
    """Whether a change ("key: old -> new") leaves what is trained as it is: other steps, logging, device, what is sampled last, or
    where the same images and weights lie and how they are read. same: which of "images" and "weights" are the same.
    """
    key = change.partition(":")[0]
    if _HARMLESS.fullmatch(key) or ("images" in same and key.startswith("data.source.")):
        return True
    return "weights" in same and re.fullmatch(r"stage\.[^.]+\.weights", key) is not None
