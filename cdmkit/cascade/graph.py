"""The graph of stages: who is conditioned on whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from cdmkit.cascade.stage import Stage
from cdmkit.errors import UsageError
from cdmkit.nearest import did_you_mean


@attrs.frozen
class Cascade:
    """Stages by name, each after its parent. Parents stand before their children; several stages may share one parent."""

    stages: Mapping[str, Stage]

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> Cascade:
        """Order the stages. They must form a forest: checked where recipes are read."""
        waiting = {stage.name: stage for stage in stages}
        ordered: dict[str, Stage] = {}
        while waiting:
            ready = [s for s in waiting.values() if s.after is None or s.after in ordered]
            if not ready:
                raise ValueError(f"stages without a way from a base stage: {', '.join(waiting)}")
            for stage in ready:
                ordered[stage.name] = waiting.pop(stage.name)
        return cls(ordered)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    def __getitem__(self, name: str) -> Stage:
        return self.stages[name]

    def named(self, name: str) -> Stage:
        """The stage of a name. Raises UsageError where there is none."""
        if name not in self.stages:
            raise UsageError(f'no stage "{name}"{did_you_mean(name, self.stages)} (stages: {", ".join(self.stages)})')
        return self.stages[name]

    def parent(self, stage: Stage) -> Stage | None:
        """The stage that `stage` is conditioned on."""
        return None if stage.after is None else self.stages[stage.after]

    def lineage(self, name: str) -> list[Stage]:
        """The stages from a base stage to `name`, in the order they are sampled."""
        stage: Stage | None = self.stages[name]
        path: list[Stage] = []
        while stage is not None:
            path.append(stage)
            stage = self.parent(stage)
        return path[::-1]

    def leaves(self) -> list[Stage]:
        """The stages that no other is conditioned on: a cascade's results."""
        parents = {stage.after for stage in self}
        return [stage for stage in self if stage.name not in parents]
