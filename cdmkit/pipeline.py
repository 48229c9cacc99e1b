"""What `cdmkit run` does, in reading order: read the recipe, look at the data, open the run, train each stage, sample."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
from torch import nn

from cdmkit import training
from cdmkit.cascade import Stage
from cdmkit.errors import DataError, RecipeError, Stopped, UsageError
from cdmkit.events import Emit, Event, RunFinished, RunStarted, SamplesWritten, StageFinished
from cdmkit.hookspecs import hook_name
from cdmkit.kinds import DataCard
from cdmkit.log import EventLog, MetricsLog
from cdmkit.plugins import Plugins
from cdmkit.recipe import Recipe, diff, read, to_table, to_toml
from cdmkit.runs import Run
from cdmkit.sampling import Job, preview


def run(recipe_file: Path, plugins: Plugins, overrides: Iterable[str], place: Place) -> Path:
    """Train and sample the cascade of a recipe. Returns the grid of its last stage (of the first, where there are several).

    Raises CdmkitError: see `cdmkit.errors`. Nothing is written before the recipe and its data are found good.
    """
    recipe = read(recipe_file, plugins, overrides)
    card = look_at_data(recipe)
    with place.opened(recipe, recipe_file, plugins) as run, observed(run, plugins) as emit:
        emit(RunStarted(path=run.path, name=recipe.name, stages=tuple(recipe.stage)))
        with training.stop_on_signals() as stop:
            for stage in recipe.cascade:
                train_stage(stage, recipe, card, run, emit, stop)
        return sample_leaves(recipe, run, emit)


def look_at_data(recipe: Recipe) -> DataCard:
    """The data's card. Raises DataError where the data is not there or does not fit the recipe's stages and classes."""
    card = recipe.data.source.card()
    largest = max(stage.resolution for stage in recipe.cascade)
    if card.resolution % largest:
        raise DataError(
            f"the images are {card.resolution} x {card.resolution} pixels, but the largest stage makes {largest} x {largest}: "
            "they must be as large, or a multiple of it"
        )
    if recipe.data.classes and not card.classes:
        raise DataError(f"data.classes = {recipe.data.classes}, but the images have no labels: set data.classes = 0, or use labelled data")
    if 0 < recipe.data.classes < card.classes:
        raise DataError(
            f"data.classes = {recipe.data.classes}, but labels go up to {card.classes - 1}: "
            f"set data.classes = {card.classes}, or 0 to ignore the labels"
        )
    return card


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
    def opened(self, recipe: Recipe, recipe_file: Path, plugins: Plugins) -> Iterator[Run]:
        """The run, locked; its resolved recipe is written before anything else happens."""
        text, resolved = recipe_file.read_text(encoding="utf-8"), to_toml(recipe)
        if not self.resume:
            versions = {plugin.identity.distribution: plugin.identity.version for plugin in plugins.loaded if plugin.identity.distribution}
            with Run.create(self.root, recipe.name, self.folder, command=self.command, seed=recipe.seed, plugins=versions) as run:
                run.write_recipe(text, resolved)
                yield run
            return
        with Run.resume(self.root, recipe.name, self.folder, force=self.force) as run:
            changes = diff(run.resolved_recipe(), to_table(recipe))
            if changes:
                self._admit(changes, run)
                run.write_recipe(text, resolved)
            yield run

    def _admit(self, changes: list[str], run: Run) -> None:
        """Raise RecipeError unless a run may go on with these changes of its recipe."""
        grave = [change for change in changes if not harmless(change)]
        if grave and not self.allow_recipe_change:
            listed = "\n  ".join(grave)
            raise RecipeError(
                f"the recipe is not the one that {run.path} was begun with:\n  {listed}\n"
                "Take the change back, start a new run without --resume, or go on with --allow-recipe-change."
            )
        run.note("recipe_changes", [*run.facts.get("recipe_changes", ()), *changes])


_HARMLESS = re.compile(
    r"description|requires\..*|sample\..*|data\.source\.workers"
    r"|stage\.[^.]+\.(backend\.device|train\.(steps|log_every|sample_every|checkpoint_every|keep))"
)


def harmless(change: str) -> bool:
    """Whether a change ("key: old -> new") leaves what is trained as it is: other steps, logging, workers, device, what is sampled last."""
    return _HARMLESS.fullmatch(change.partition(":")[0]) is not None


def teller(plugins: Plugins) -> Emit:
    """Tells every plugin that observes."""

    def emit(event: Event) -> None:
        getattr(plugins.manager.hook, hook_name(type(event)))(event=event)

    return emit


@contextlib.contextmanager
def observed(run: Run, plugins: Plugins) -> Iterator[Emit]:
    """Where the run's events go: to its logs and to every plugin that observes. Notes and tells how the run ends."""
    emit = teller(plugins)
    logs = (EventLog(run.path / "events.jsonl"), MetricsLog(run.path / "metrics.jsonl"))
    for log in logs:
        plugins.manager.register(log)
    outcome = "failed"
    try:
        yield emit
        outcome = "finished"
    except Stopped:
        outcome = "stopped"
        raise
    finally:
        with contextlib.suppress(OSError):  # a deleted run, or a full disk: what made the run end is the news
            run.note("outcome", outcome)
        emit(RunFinished(path=run.path, outcome=outcome))
        for log in logs:
            plugins.manager.unregister(log)


def train_stage(stage: Stage, recipe: Recipe, card: DataCard, run: Run, emit: Emit, stop: training.StopRequest) -> None:
    """Train one stage, unless it is trained already and nothing that matters to it has changed."""
    parent = recipe.cascade.parent(stage)
    tables = {name: to_table(each) for name, each in recipe.stage.items()}
    data = {"fingerprint": card.fingerprint, "downsample": recipe.data.downsample.value, "classes": recipe.data.classes}
    digest = training.fingerprint(stage.name, tables[stage.name], tables[parent.name] if parent else None, data, recipe.seed)
    folder = run.stage(stage.name)
    if training.is_done(folder, digest, stage.train.steps):
        emit(StageFinished(stage=stage.name, step=stage.train.steps, skipped=True))
        return
    run.claim_stage(stage.name, digest)

    def show(network: nn.Module, step: int) -> None:
        path = folder / "samples" / f"step-{step:08d}.png"
        source, downsample = recipe.data.source, recipe.data.downsample
        count = preview(stage, parent, network=network, source=source, downsample=downsample, seed=recipe.seed, path=path)
        emit(SamplesWritten(stage=stage.name, path=path, count=count))

    training.train(
        stage,
        parent,
        source=recipe.data.source,
        downsample=recipe.data.downsample,
        classes=recipe.data.classes,
        seed=recipe.seed,
        folder=folder,
        metadata={"stage": stage.name, "table": tables[stage.name], "parent": tables.get(stage.after or ""), "data": data},
        emit=emit,
        stop=stop,
        sample=show,
    )
    training.mark_done(folder, digest, stage.train.steps)
    emit(StageFinished(stage=stage.name, step=stage.train.steps))


def sample_leaves(recipe: Recipe, run: Run, emit: Emit) -> Path:
    """Sample every stage that no other enlarges, as `[sample]` says. Returns the grid of the first."""
    grids = [sample_stage(recipe, run, leaf, emit, run.path / "samples") for leaf in recipe.cascade.leaves()]
    return grids[0]


def sample_stage(
    recipe: Recipe,
    run: Run,
    stage: Stage,
    emit: Emit,
    folder: Path,
    *,
    count: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
    labels: Sequence[int] = (),
) -> Path:
    """Sample the cascade up to `stage` into `folder`; what is not given is as `recipe` says. Returns the grid.

    labels: those to make, in turn; by default all of the data's. Raises UsageError where there is no such label.
    """
    classes = recipe.data.classes
    if strange := [label for label in labels if not 0 <= label < classes]:
        known = f"labels are 0 to {classes - 1}" if classes else "the data has no classes"
        raise UsageError(f"no class {', '.join(map(str, strange))}: {known}")
    job = Job(
        lineage=recipe.cascade.lineage(stage.name),
        count=count or recipe.sample.count,
        batch=batch or recipe.sample.batch,
        seed=recipe.seed if seed is None else seed,
        labels=tuple(labels) or tuple(range(classes)),
    )
    return job.run(run.path / "stages", classes, folder, emit)
