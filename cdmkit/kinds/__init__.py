"""The kinds of component: what each must do. Every component of a recipe is a subclass of one of these.

Images inside cdmkit are [B, 3, R, R] in [-1, 1]; uint8 exists only at the borders. Values do their work themselves; a kind that needs state
(a module, a session, an open data set) makes it with one verb, so that a recipe stays frozen and comparable.
"""

from cdmkit.component import Component
from cdmkit.kinds.computing import Backend, Optimizer, Session
from cdmkit.kinds.conditioning import Augmentation, Augmented
from cdmkit.kinds.data import Batch, Batches, DataCard, Original, Originals, Preparer, Skip, Source
from cdmkit.kinds.dropout import Dropout, key_dropout
from cdmkit.kinds.learning import MAX_SIGMA_REL, Average, LrSchedule, exponential_decay, power_exponent
from cdmkit.kinds.network import Backbone, NetworkSpec
from cdmkit.kinds.noising import Density, Loss, Schedule, Timesteps, Visit, Weighting
from cdmkit.kinds.sampling import Guidance, Sampler, Spaced, Spacing, Threshold

KINDS: dict[str, type[Component]] = {
    kind.kind: kind
    for kind in (
        Schedule,
        Density,
        Loss,
        Weighting,
        Augmentation,
        Backbone,
        Sampler,
        Spacing,
        Threshold,
        Guidance,
        Source,
        Preparer,
        Optimizer,
        LrSchedule,
        Average,
        Backend,
    )
}
"""Every kind by name, in the order they are listed to people."""

__all__ = [
    "KINDS",
    "MAX_SIGMA_REL",
    "Augmentation",
    "Augmented",
    "Average",
    "Backbone",
    "Backend",
    "Batch",
    "Batches",
    "DataCard",
    "Density",
    "Dropout",
    "Guidance",
    "Loss",
    "LrSchedule",
    "NetworkSpec",
    "Optimizer",
    "Original",
    "Originals",
    "Preparer",
    "Sampler",
    "Schedule",
    "Session",
    "Skip",
    "Source",
    "Spaced",
    "Spacing",
    "Threshold",
    "Timesteps",
    "Visit",
    "Weighting",
    "exponential_decay",
    "key_dropout",
    "power_exponent",
]
