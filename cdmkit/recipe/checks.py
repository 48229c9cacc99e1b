"""What one table alone cannot show: names, the graph of stages, and how components of a cascade fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cdmkit import __version__
from cdmkit.cascade import LowRes, Mode, Stage
from cdmkit.diffusion import Prediction
from cdmkit.nearest import did_you_mean
from cdmkit.recipe.faults import KeyPath, Problem
from cdmkit.recipe.model import SLUG, Recipe, Requires


def check_requires(requires: Requires) -> Iterator[Problem]:
    """Whether what the recipe requires is installed."""
    if requires == Requires():
        return
    from packaging.requirements import InvalidRequirement, Requirement  # slow to import
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        if not SpecifierSet(requires.cdmkit).contains(__version__, prereleases=True):
            install = f"pip install 'cdmkit{requires.cdmkit}'"
            yield Problem(
                ("requires", "cdmkit"), f"the recipe needs cdmkit {requires.cdmkit}, this is {__version__}: {install}", setup=True
            )
    except InvalidSpecifier:
        yield Problem(("requires", "cdmkit"), f'"{requires.cdmkit}" is no version range: write it as in ">=0.1"')
    for index, text in enumerate(requires.plugins):
        path = ("requires", "plugins", index)
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            yield Problem(path, f'"{text}" is no requirement: write it as in "cdmkit-xla>=1"')
            continue
        found = _installed(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            have = "it is not installed" if found is None else f"{found} is installed"
            yield Problem(path, f"the recipe needs {wanted}, but {have}: pip install '{wanted}'", setup=True)


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_names(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Whether the recipe's and the stages' names are safe as folder names, and stages name stages that exist, without a circle.

    Looks at plain tables, so that it finds these whatever else is wrong.
    """
    name, stages = tables.get("name"), tables.get("stage")
    if isinstance(name, str) and not re.fullmatch(SLUG, name):
        yield Problem(("name",), _no_slug(name))
    if not isinstance(stages, dict):
        return
    if not stages:
        yield Problem(("stage",), "there is no stage: add a table such as [stage.base]")
    for stage in stages:
        if not re.fullmatch(SLUG, stage):
            yield Problem(("stage", stage), _no_slug(stage))
    parents = {stage: table["after"] for stage, table in stages.items() if isinstance(table, dict) and isinstance(table.get("after"), str)}
    for stage, parent in parents.items():
        if parent not in stages:
            known = did_you_mean(parent, stages) or f"; stages: {', '.join(stages)}"
            yield Problem(("stage", stage, "after"), f'there is no stage "{parent}"{known}')
        elif (circle := _circle(stage, parents)) and stage == min(circle):
            yield Problem(("stage", stage, "after"), f"stages follow each other in a circle: {' -> '.join((*circle, stage))}")


def _no_slug(name: str) -> str:
    return f'"{name}" cannot be a folder name: use up to 64 letters, digits, - and _, the first a letter or digit'


def _circle(start: str, parents: Mapping[str, str]) -> list[str]:
    """The stages from `start` along its parents back to it, or nothing where they do not lead back."""
    way = [start]
    while (parent := parents.get(way[-1])) is not None and parent not in way:
        way.append(parent)
    return way if parents.get(way[-1]) == start else []


def check_cascade(recipe: Recipe) -> Iterator[Problem]:
    """Whether schedules and samplers work, and every stage fits its parent. The graph is known to be sound."""
    unusable = [problem for stage in recipe.stage.values() for problem in _check_schedules(stage)]
    yield from unusable
    for stage in recipe.stage.values() if not recipe.data.classes else ():
        yield from _check_unlabeled(stage)
    for stage in recipe.stage.values() if not unusable else ():
        parent = None if stage.after is None else recipe.stage[stage.after]
        enlarges = stage.enlarges(parent)
        if enlarges is not None:
            yield from _check_resolution(stage, enlarges)
            yield from _check_augment(stage, enlarges) or _check_handover(stage, enlarges, parent)
        yield from _check_loss(stage)
        yield from _check_sampler(stage, recipe)


def _check_unlabeled(stage: Stage) -> Iterator[Problem]:
    """What is about labels changes nothing where the data has no classes."""
    idle = {"label_dropout": stage.label_dropout > 0, "guidance": stage.guidance is not None and stage.guidance.needs_unlabeled}
    for key in (key for key, asked in idle.items() if asked):
        yield Problem(("stage", stage.name, key), "this is about labels, but the data has none: set data.classes, or remove it")


def _check_schedules(stage: Stage) -> Iterator[Problem]:
    """Whether a stage's schedules make processes that its prediction can be sampled along, and its network be told of."""
    for key, schedule in (("schedule", stage.schedule), ("sampling_schedule", stage.sampling_schedule)):
        try:
            end = 1.0 if schedule is None else float(schedule.process().alpha_bars[-1].float())  # float32, as computed with
        except ValueError as error:
            yield Problem(("stage", stage.name, key), str(error))
            continue
        if stage.noise_input.continuous and schedule is stage.schedule and schedule.process().steps == 1:
            words = (
                f'"{stage.noise_input.value}" draws levels between timesteps, and would show the image where this schedule has one timestep'
            )
            yield Problem(("stage", stage.name, "noise_input"), f'{words}: choose "timestep"')
        if stage.prediction is Prediction.EPSILON and end == 0:
            words = 'alpha_bar ends at 0, where epsilon says nothing of the image: choose prediction = "v" or "x0", or less noise'
            yield Problem(("stage", stage.name, key), words)


def _check_loss(stage: Stage) -> Iterator[Problem]:
    try:
        stage.loss.check(stage.process())
    except ValueError as error:
        yield Problem(("stage", stage.name, "loss"), str(error))


def _check_resolution(stage: Stage, enlarges: LowRes) -> Iterator[Problem]:
    if stage.resolution <= enlarges.resolution or stage.resolution % enlarges.resolution:
        whose = "low_res" if stage.after is None else f'the resolution of its parent "{stage.after}"'
        yield Problem(("stage", stage.name, "resolution"), f"{stage.resolution} is not 2, 3, 4, ... times {enlarges.resolution}, {whose}")


def _check_augment(stage: Stage, enlarges: LowRes) -> list[Problem]:
    """Whether the augmentations, and the schedules of their own, suit what is enlarged."""
    problems = []
    for index, augmentation in enumerate(stage.augment):
        try:
            augmentation.noise_schedule(enlarges.schedule).process()
            augmentation.check(enlarges.schedule, enlarges.resolution, stage.condition.s)
        except ValueError as error:
            problems.append(Problem(("stage", stage.name, "augment", index), str(error)))
    return problems


def _check_handover(stage: Stage, enlarges: LowRes, parent: Stage | None) -> Iterator[Problem]:
    """Whether s exists in the schedule it counts in, and a truncated parent's z_s is what the stage was trained on."""
    path: KeyPath = ("stage", stage.name, "condition")
    schedules = [augmentation.noise_schedule(enlarges.schedule) for augmentation in stage.augment if augmentation.noises]
    last = min((schedule.process().steps for schedule in schedules), default=0)  # without any, s is 0
    if stage.condition.s > last:
        yield Problem((*path, "s"), f"s = {stage.condition.s} is beyond {last}, the last timestep of the schedule it counts in")
    if stage.condition.mode is Mode.TRUNCATED and parent is not None:
        if any(schedule != parent.schedule for schedule in schedules):
            yield Problem((*path, "mode"), f'truncated needs noise along the schedule of "{parent.name}": remove the augmentation\'s own')
        if parent.sampling_schedule is not None:
            yield Problem(
                (*path, "mode"), f'truncated needs "{parent.name}" sampled along its training schedule: remove its sampling_schedule'
            )


def _check_sampler(stage: Stage, recipe: Recipe) -> Iterator[Problem]:
    """Whether the sampler can run the chain, also to where truncated children want it to stop."""
    process = stage.sampling_process()
    truncated = [child.condition for child in recipe.stage.values() if child.after == stage.name and child.condition.mode is Mode.TRUNCATED]
    for stop_at in sorted({0, *(condition.s for condition in truncated if condition.s <= process.steps)}):
        try:
            stage.sampler.chain(process, stop_at)
        except ValueError as error:
            yield Problem(("stage", stage.name, "sampler"), str(error))
            return


def check_networks(recipe: Recipe) -> Iterator[Problem]:
    """Whether every stage's network can be built. Builds it without memory, on the meta device."""
    for stage in recipe.stage.values():
        try:
            with torch.device("meta"), _Unfilled():
                stage.backbone.build(stage.network_spec(recipe.data.classes))
        except ValueError as error:
            yield Problem(("stage", stage.name, "backbone"), str(error))


class _Unfilled(TorchFunctionMode):
    """Leave out filling weights: meta tensors hold nothing to fill, and torch would spend a second or two on it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
