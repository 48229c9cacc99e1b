"""What `cdmkit run` does, in reading order: read the recipe, look at the data, open the run, train each stage, sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from cdmkit import training
from cdmkit.cascade import Stage
from cdmkit.cascade.sampling import Tick
from cdmkit.component import Binds
from cdmkit.diffusion import Units
from cdmkit.errors import CheckpointError, NumericsError, SetupError, Stopped, UsageError
from cdmkit.evaluation import bpd
from cdmkit.events import Emit, Event, RunFinished, RunStarted, SamplesWritten, StageFinished, Warned
from cdmkit.hookspecs import hook_name
from cdmkit.log import EventLog, MetricsLog
from cdmkit.place import Given, Place
from cdmkit.plugins import Plugins
from cdmkit.preflight import Looked, look_at_data, needs_data
from cdmkit.previewing import Previewer, drift_alarm
from cdmkit.ranks import Ranks, joined
from cdmkit.recipe import Recipe, loose, ordering, read, to_table, without
from cdmkit.runs import Run
from cdmkit.sampling import Job, Progress, Reals, open_network, weights_of
from cdmkit.weights import check_begun_as_is, check_seen_alike, check_trained_as_is, check_weights, digests, guiding


def run(recipe_file: Path, plugins: Plugins, overrides: Iterable[str], place: Place) -> Path | None:
    """Train and sample the cascade of a recipe, or train the one stage that `place` names, as one of the processes that do.

    Returns the grid of its last stage (of the first, where there are several); the folder of the stage that was trained alone; None in all
    processes but the first. Raises CdmkitError: see `cdmkit.errors`. Nothing is written before the recipe, its data and its devices are
    found good.
    """
    recipe = read(recipe_file, plugins, overrides)
    stages = [recipe.cascade.named(place.stage)] if place.stage else list(recipe.cascade)

    def looked_at() -> Looked | None:
        """Whatever can be found wrong before a run is made; the first process tells of it, the others come after."""
        for stage in stages:
            training.check_shares(stage, stage.backend.start())
            check_weights(stage, recipe.cascade.parent(stage), plugins)
        return look_at_data(recipe) if needs_data(recipe) else None

    with joined() as ranks, training.stop_on_signals() as stop:
        looked = ranks.first_then_all(looked_at)
        given = Given(looked.train.fingerprint if looked else "", digests(recipe.cascade))
        with place.opened(recipe, given, recipe_file, plugins, ranks) as run, observed(run, plugins, place.stage, ranks) as emit:
            emit(RunStarted(path=run.path, name=recipe.name, stages=tuple(stage.name for stage in stages)))
            if looked:
                looked.tell(recipe, emit)
            trainer = Trainer(
                recipe=recipe, given=given, crop=looked.train.crop if looked else "", run=run, emit=emit, stop=stop, ranks=ranks
            )
            for stage in stages:
                trainer.train(stage)
            if place.stage or not ranks.first:
                return run.stage(place.stage) if ranks.first else None
            return sample_leaves(recipe, run, plugins, emit, stop)


def teller(plugins: Plugins) -> Emit:
    """Tells every plugin that observes, each by itself. One that fails is warned of once; the others are told, and the work goes on."""
    failed: set[int] = set()

    def emit(event: Event) -> None:
        hook = hook_name(type(event))
        for observer in reversed(getattr(plugins.manager.hook, hook).get_hookimpls()):  # in pluggy's order
            try:
                observer.function(*[event for _ in observer.argnames])
            except Exception as error:
                if id(observer.plugin) not in failed:
                    failed.add(id(observer.plugin))
                    name = getattr(observer.plugin, "__name__", type(observer.plugin).__name__)
                    emit(Warned(message=f"plugin {name} failed in {hook}: {type(error).__name__}: {error}. The work goes on."))

    return emit


@contextlib.contextmanager
def observed(run: Run, plugins: Plugins, stage: str, ranks: Ranks) -> Iterator[Emit]:
    """Where the run's events go: to its logs and to every plugin that observes. Notes and tells how the run ends.

    Whoever trains one stage alone has logs of its own in the stage's folder. Of several processes the first speaks for all; the others only
    keep a log.
    """
    folder = run.stage(stage) if stage else run.path
    if not ranks.first:
        yield EventLog(folder / f"events.rank-{ranks.rank}.jsonl").write
        return
    emit = teller(plugins)
    logs = (EventLog(folder / "events.jsonl"), MetricsLog(folder / "metrics.jsonl"))
    for each in logs:
        plugins.manager.register(each)
    outcome = "failed"
    if not stage:
        run.note(outcome=None)
    try:
        yield emit
        outcome = "finished"
    except Stopped:
        outcome = "stopped"
        raise
    finally:
        with contextlib.suppress(OSError):  # a deleted run, or a full disk: what made the run end is the news
            if not stage:
                run.note(outcome=outcome)
        emit(RunFinished(path=run.path, outcome=outcome))
        for each in logs:
            plugins.manager.unregister(each)


@attrs.frozen(eq=False, kw_only=True)
class Trainer:
    """Trains the stages of a run, as one of its processes."""

    recipe: Recipe
    given: Given
    crop: str
    """How the images were cropped, empty where that is not known."""
    run: Run
    emit: Emit
    stop: training.StopRequest
    ranks: Ranks

    def train(self, stage: Stage) -> None:
        """Train one stage, unless it is trained already and nothing that matters to it has changed, or it is sampled as it came."""
        if not stage.train.steps:
            self.emit(StageFinished(stage=stage.name, step=0, skipped=True))
            return
        digest, folder = self._fingerprint(stage), self.run.stage(stage.name)

        def found() -> str:
            saved = training.latest(folder / "ckpt")
            if saved and training.is_done(folder, digest, stage.train.steps):
                return str(training.step_of(saved))
            return "another" if self.run.claim_stage(stage.name, digest) else ""

        if (what := self.ranks.told(found)).isdecimal():
            self.emit(StageFinished(stage=stage.name, step=int(what), skipped=True))
            return
        if what == "another":
            self.emit(Warned(message=f"stage {stage.name!r} is another one now: what it had learned is removed, it is trained anew"))
        data = self.recipe.data
        saved = training.train(
            stage,
            self.recipe.cascade.parent(stage),
            source=data.source,
            downsample=data.downsample,
            classes=data.classes,
            seed=self.recipe.seed,
            folder=folder,
            metadata=self._metadata(stage),
            emit=self.emit,
            stop=self.stop,
            sample=partial(self._show, stage),
        )
        step = training.step_of(saved)
        if self.ranks.first:
            training.mark_done(folder, digest, step)
        self.emit(StageFinished(stage=stage.name, step=step))

    def _fingerprint(self, stage: Stage) -> str:
        """Of all that decides the stage's weights."""
        lean = without(to_table(stage, defaults=False), set(loose(stage, Binds.TRAINING)))
        parent = to_table(self.recipe.cascade.parent(stage), defaults=False)
        return training.fingerprint(stage.name, lean, parent, self._learned_from, self.recipe.seed, self.given.weights.get(stage.name, ""))

    @property
    def _learned_from(self) -> dict[str, Any]:
        """What of the data decides the weights of a stage: the images, how they are made smaller, their labels and their order."""
        source, downsample = self.recipe.data.source, self.recipe.data.downsample.value
        data: dict[str, Any] = {"fingerprint": self.given.images, "downsample": downsample, "classes": self.recipe.data.classes}
        order = {key: value for key, value in ordering(source).items() if value}  # left out where it is the only one there was
        return data | {"order": order} if order else data

    def _metadata(self, stage: Stage) -> dict[str, Any]:
        """What the stage's weights files say of themselves."""
        return {
            "stage": stage.name,
            "table": to_table(stage),
            "parent": to_table(self.recipe.cascade.parent(stage)),
            "data": {**self._learned_from, "crop": self.crop},
        }

    def _show(self, stage: Stage, network: nn.Module, step: int, tick: Tick) -> None:
        """Write a grid of a stage's samples. All processes make it, the first writes it."""
        path = self.run.path / "stages" / stage.name / "samples" / f"step-{step:08d}.png"
        try:
            shown = self._previewer(stage)(network, path if self.ranks.first else None, tick)
        except (OSError, SetupError, CheckpointError, NumericsError) as error:
            self.emit(Warned(message=f"stage {stage.name!r}: no samples of step {step}: {error}. Training goes on."))
            return
        self.emit(SamplesWritten(stage=stage.name, path=path, count=shown.count, drift=shown.drift))
        if shown.drift is not None and (alarm := drift_alarm(stage, step, shown.drift)):
            self.emit(Warned(message=alarm))

    def _previewer(self, stage: Stage) -> Previewer:
        """What draws the grids of a stage."""
        return Previewer(
            lineage=self.recipe.cascade.lineage(stage.name),
            stages=self.run.path / "stages",
            source=self.recipe.data.unseen,
            downsample=self.recipe.data.downsample,
            classes=self.recipe.data.classes,
            seed=self.recipe.seed,
            skipped=lambda skip: self.emit(skip.event()),
        )


def sample_leaves(recipe: Recipe, run: Run, plugins: Plugins, emit: Emit, stop: training.StopRequest) -> Path:
    """Sample every stage that no other enlarges, as `[sample]` says. Returns the grid of the first.

    Several have a folder each: the stages they share may stop at different timesteps for each.
    """
    leaves, folder = list(recipe.cascade.leaves()), run.path / "samples"
    folders = {leaf: folder / leaf.name if len(leaves) > 1 else folder for leaf in leaves}
    first, *_ = [sample_stage(recipe, run, leaf, plugins, emit, place, stop=stop) for leaf, place in folders.items()]
    return first


def sample_stage(
    recipe: Recipe,
    run: Run,
    stage: Stage,
    plugins: Plugins,
    emit: Emit,
    folder: Path | None = None,
    *,
    count: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
    labels: Sequence[int] = (),
    stop: training.StopRequest | None = None,
) -> Path:
    """Sample the cascade up to `stage` into `folder`, by default a new one of the run; what is not given is as `recipe` says.

    labels: those to make, in turn; by default all of the data's, where a stage is told them. Returns the grid. Raises UsageError where
    there is no such label, CheckpointError where a stage was trained as another one, and Stopped where `stop` is set.
    """
    lineage = recipe.cascade.lineage(stage.name)
    classes = recipe.data.classes if any(each.labels for each in lineage) else 0
    if labels and lineage[0].low_res is not None:
        raise UsageError(f"stage {lineage[0].name!r} enlarges real images, which have labels of their own: leave the class out")
    if strange := [label for label in labels if not 0 <= label < classes]:
        known = (
            f"labels are 0 to {classes - 1}" if classes else "no stage is told labels" if recipe.data.classes else "the data has no classes"
        )
        raise UsageError(f"no class {', '.join(map(str, strange))}: {known}")
    for each in lineage:
        path = weights_of(each, run.path / "stages")
        check_begun_as_is(each, path)
        check_trained_as_is(each, recipe.cascade.parent(each), path)
    real = lineage[0].low_res
    if real is not None:
        card = look_at_data(recipe).unseen
        check_seen_alike(lineage[0], weights_of(lineage[0], run.path / "stages"), recipe.data.downsample, card.crop)
    job = Job(
        lineage=lineage,
        reals=None if real is None else Reals(recipe.data.unseen, recipe.data.downsample, real),
        guides={each.name: guide for each in lineage if (guide := guiding(each, recipe.cascade.parent(each), plugins))},
        count=count or recipe.sample.count,
        batch=batch or recipe.sample.batch,
        seed=recipe.seed if seed is None else seed,
        labels=tuple(labels) or tuple(range(classes)),
    )
    renderer = job.renderer(run.path / "stages", classes, Progress(emit, stop))
    return job.run(renderer, folder or run.new_samples(), emit)


def measure_bpd(
    recipe: Recipe,
    run: Run,
    stages: Sequence[Stage],
    emit: Emit,
    folder: Path | None = None,
    *,
    count: int,
    batch: int,
    steps: int | None,
    units: Units,
    seed: int,
    split: str | None = None,
) -> list[bpd.Result]:
    """The variational bound of trained stages on `count` images, written into `folder`, by default the run's eval/.

    split: "train" or "val"; by default the one that nothing was learned from, where there is one. See
    `cdmkit.evaluation.bpd.Measurement`. Raises UsageError where there are fewer images or timesteps or there is no such split,
    CheckpointError where a stage has no weights or was trained on images made in another way, and SetupError where `folder` cannot be
    written.
    """
    looked = look_at_data(recipe)
    looked.tell(recipe, emit)
    split = split or ("val" if looked.val else "train")
    if split == "val" and looked.val is None:
        raise UsageError("the recipe has no validation images: add a table [data.val] with a source, or measure --split train")
    card, source = (looked.train, recipe.data.source) if split == "train" else (looked.unseen, recipe.data.unseen)
    if count > card.count:
        raise UsageError(f"the {split} data has {card.count} images, not {count}: lower --count")
    if short := [stage.name for stage in stages if steps and steps > stage.process().steps]:
        raise UsageError(f"stage {short[0]!r} has fewer than {steps} timesteps: lower --steps, or leave it out for all of them")
    place = folder or run.path / "eval"
    bpd.open_folder(place)
    measure = bpd.Measurement(
        source=source,
        downsample=recipe.data.downsample,
        count=count,
        batch=min(batch, count),
        seed=seed,
        steps=steps,
        units=units,
        split=split,
        skipped=lambda skip: emit(skip.event()),
        labeled=recipe.data.classes > 0,
    )
    progress, results = Progress(emit, total={stage.name: measure.calls(stage) for stage in stages}), []
    paths = {stage.name: weights_of(stage, run.path / "stages") for stage in stages}
    for stage in stages:  # all of them before the work
        check_trained_as_is(stage, recipe.cascade.parent(stage), paths[stage.name])
        check_seen_alike(stage, paths[stage.name], recipe.data.downsample, card.crop)
    for stage in stages:
        path, parent, session = paths[stage.name], recipe.cascade.parent(stage), stage.backend.start()
        result = measure(stage, parent, open_network(stage, path, recipe.data.classes, session), session, progress)
        facts = {"weights": str(path), "seed": seed, "downsample": recipe.data.downsample.value}
        result.write(place, {**facts, "s": stage.condition.s if stage.enlarging else None})
        results.append(result)
    return results
