"""Where a run goes, and whether one may be gone on with: what it was begun with is compared with what it is given now."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import tomli

from cdmkit.component import Binds
from cdmkit.errors import RecipeError, SetupError
from cdmkit.plugins import Plugins
from cdmkit.ranks import Ranks, launch
from cdmkit.recipe import Recipe, diff, loose, ordering, to_table, to_toml
from cdmkit.runs import Run


@attrs.frozen
class Given:
    """What a run is given beside its recipe."""

    images: str
    """The fingerprint of the training images; empty where none are looked at."""
    weights: Mapping[str, str]
    """The SHA-256 of the file that each stage begins with, by stage."""

    @property
    def facts(self) -> dict[str, Any]:
        """As run.json has it."""
        return {"images": self.images, "weights": dict(self.weights)}


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
    stage: str = ""
    """Train this stage alone, in a run where others may be trained at the same time."""
    command: tuple[str, ...] = ()
    """The command line, for the record."""

    @contextlib.contextmanager
    def opened(self, recipe: Recipe, given: Given, recipe_file: Path, plugins: Plugins, ranks: Ranks) -> Iterator[Run]:
        """The run, locked; its resolved recipe is written before anything else happens. The first process opens it for all."""
        texts = (recipe_file.read_text(encoding="utf-8"), to_toml(recipe))
        with contextlib.ExitStack() as stack:

            def opened() -> str:
                run = self._found(recipe.name)
                try:
                    made = run or Run.create(
                        self.root, recipe.name, self.folder, recipe=texts, facts=self._facts(recipe, given, plugins), command=self.command
                    )
                except SetupError:
                    run = self._found(recipe.name)
                    if run is None:
                        raise
                    made = run  # by another stage's process, in between
                compare = partial(self._go_on, made, recipe, given, texts)
                stack.enter_context(made.lock(self.stage, force=self.force, begin=compare if run else lambda: None))
                return str(made.path)

            yield Run(Path(ranks.told(opened)))

    def _found(self, name: str) -> Run | None:
        """The run to go on with: that of this start before a fault, the one asked for, or one of which a stage is to be trained."""
        launched, again = launch()
        if again and (run := Run.launched(self.root, name, self.folder, launched)):
            return run
        if self.resume or (self.stage and self.folder and (self.folder / "run.json").exists()):
            return Run.existing(self.root, name, self.folder)
        return None

    def _facts(self, recipe: Recipe, given: Given, plugins: Plugins) -> dict[str, Any]:
        """What a new run's run.json is to say."""
        versions = {plugin.identity.distribution: plugin.identity.version for plugin in plugins.loaded if plugin.identity.distribution}
        return {"seed": recipe.seed, "launch": launch()[0], **given.facts, "versions": versions}

    def _go_on(self, run: Run, recipe: Recipe, given: Given, texts: tuple[str, str]) -> None:
        """Compare what the run was begun with with what it is given now, and note what has changed. Raises RecipeError where it may not."""
        before = {**run.resolved_recipe(), "images": run.facts.get("images"), "weights": run.facts.get("weights", {})}
        now, lean = ({**table, **given.facts} for table in (tomli.loads(texts[1]), to_table(recipe, defaults=False)))
        if changes := diff(before, now, lean):
            free = {f"stage.{stage.name}.{key}" for stage in recipe.cascade for key in loose(stage, Binds.TRAINING)}
            self._admit(changes, run, free, {f"data.source.{key}" for key in ordering(recipe.data.source)})
            run.note(**given.facts)
            run.write_recipe(*texts)
        run.note(launch=launch()[0])

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
        run.note(recipe_changes=[*run.facts.get("recipe_changes", ()), *changes])


_HARMLESS = re.compile(r"description|requires\..*|sample\..*|data\.val(\..*)?")


def harmless(change: str, same: Collection[str]) -> bool:
    """Whether a change ("key: old -> new") outside the stages' own options leaves what is trained as it is: what is sampled last, or where
    the same images and weights lie and how they are read. same: which of "images" and "weights" are the same.
    """
    key = change.partition(":")[0]
    if _HARMLESS.fullmatch(key) or ("images" in same and key.startswith("data.source.")):
        return True
    return "weights" in same and re.fullmatch(r"stage\.[^.]+\.weights", key) is not None
