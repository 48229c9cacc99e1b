"""Cascades: stages, the graph they form, and sampling through it. Knows no recipe."""

from cdmkit.cascade.graph import Cascade
from cdmkit.cascade.stage import Handover, LowRes, Mode, Stage, Training

__all__ = ["Cascade", "Handover", "LowRes", "Mode", "Stage", "Training"]
