"""Training a stage: the step, the moving average, checkpoints and the loop."""

from cdmkit.training.checkpoint import fit, latest, read_metadata, read_weights, step_of
from cdmkit.training.fingerprint import fingerprint, is_done, lasting, mark_done
from cdmkit.training.loop import check_shares, train
from cdmkit.training.stopping import StopRequest, stop_on_signals

__all__ = [
    "StopRequest",
    "check_shares",
    "fingerprint",
    "fit",
    "is_done",
    "lasting",
    "latest",
    "mark_done",
    "read_metadata",
    "read_weights",
    "step_of",
    "stop_on_signals",
    "train",
]
