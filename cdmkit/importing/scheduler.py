"""scheduler_config.json of diffusers, and the chain that it makes."""

from __future__ import annotations

from typing import Any

import attrs

from cdmkit.importing.config import only

_VARIANCES = {
    "fixed_small": "fixed-small",
    "fixed_small_log": "fixed-small",
    "fixed_large": "fixed-large",
    "learned_range": "learned-range",
}
_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


@attrs.frozen(kw_only=True)
class Scheduler:
    """scheduler_config.json of a DDPMScheduler or DDIMScheduler, with their defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True

    @property
    def learned(self) -> bool:
        """Whether the network has channels for variances."""
        return self.variance_type == "learned_range"

    def table(self, ddim: bool) -> dict[str, Any]:
        """The stage's chain and what its network predicts along it. Raises ValueError, naming the key that cdmkit has nothing for.

        ddim: whether it is a DDIMScheduler's.
        """
        only("beta_schedule", self.beta_schedule, "linear", "squaredcos_cap_v2")
        only("trained_betas", self.trained_betas, None)
        only("rescale_betas_zero_snr", self.rescale_betas_zero_snr, False)
        only("variance_type", self.variance_type, *_VARIANCES)
        only("prediction_type", self.prediction_type, *_PREDICTIONS)
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        schedule = {"type": "linear", **ends} if self.beta_schedule == "linear" else {"type": "cosine"}
        return {
            "schedule": {**schedule, "timesteps": self.num_train_timesteps},
            "prediction": _PREDICTIONS[self.prediction_type],
            "variance": _VARIANCES[self.variance_type],
            **({"variance_floor": 1e-20} if self.learned else {}),
            "noise_input": "timestep-from-0",
            "loss": {"type": "hybrid" if self.learned else "simple"},
            "sampler": self._sampler(ddim),
            "threshold": self._threshold(),
        }

    def _sampler(self, ddim: bool) -> dict[str, Any]:
        """What the pipelines do by default: every timestep ancestrally, or 50 by DDIM."""
        if not ddim:
            return {"type": "ancestral", "steps": self.num_train_timesteps}
        only("set_alpha_to_one", self.set_alpha_to_one, True)
        only("timestep_spacing", self.timestep_spacing, "leading", "trailing", "linspace")
        steps = min(50, self.num_train_timesteps)
        if self.num_train_timesteps % steps:
            raise ValueError(
                f"num_train_timesteps = {self.num_train_timesteps}: the {steps} steps of a DDIMScheduler do not divide it evenly, and what "
                "it rounds to is not what cdmkit visits. Save the pipeline with a DDPMScheduler, and choose a sampler in the recipe"
            )
        made: dict[str, Any] = {"type": "ddim", "steps": steps}
        if self.timestep_spacing == "linspace":
            return made
        if self.timestep_spacing == "trailing":
            return {**made, "spacing": {"type": "sections", "counts": [1] * steps}}
        only("steps_offset", self.steps_offset, 0)
        return {**made, "spacing": {"type": "stride"}}

    def _threshold(self) -> dict[str, Any]:
        if self.thresholding:
            return {"type": "dynamic", "percentile": self.dynamic_thresholding_ratio, "largest": self.sample_max_value}
        if not self.clip_sample:
            return {"type": "none"}
        only("clip_sample_range", self.clip_sample_range, 1.0)
        return {"type": "static"}
