"""What settings of diffusers make, and how its tensors become ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdmkit.errors import CheckpointError
from cdmkit.importing import Imported, import_weights
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read, to_table
from cdmkit.training import read_weights
from tests.importing.cases import DIFFUSERS, golden, save_folder, weights

PLUGINS = load_plugins()
CONFIG, SCHEDULER = DIFFUSERS["diffusers DDPM"]


def state(name: str = "diffusers DDPM") -> dict[str, Tensor]:
    """A case's weights."""
    return weights(golden(name)["tensors"])


def take(folder: Path, out: str = "out") -> Imported:
    """Import a folder."""
    return import_weights("diffusers", folder, None, "found", folder.parent / out, PLUGINS)


def table(made: Imported) -> dict[str, Any]:
    """The stage that was made of it."""
    found: dict[str, Any] = to_table(read(made.recipe, PLUGINS).stage["base"])
    return found


def tensors(made: Imported) -> dict[str, Tensor]:
    """Its weights under our names."""
    return dict(read_weights(made.recipe.with_suffix(".safetensors"))[0])


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_pipelines_and_models_are_taken(ending: str, tmp_path: Path) -> None:
    """A pipeline's folder with its scheduler; a model's folder alone, of which DDPM's scheduler is assumed and that is said."""
    folder = save_folder(tmp_path / "pipeline", CONFIG, SCHEDULER, state(), ending)
    whole, alone = take(folder), take(folder / "unet", "alone")
    assert whole.notes == ()
    (note,) = alone.notes
    assert "has no scheduler beside the network: DDPM's is assumed" in note
    one, other = tensors(whole), tensors(alone)
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert (table(whole)["variance"], table(alone)["variance"]) == ("fixed-large", "fixed-small")


def test_a_stage_says_what_the_settings_say(tmp_path: Path) -> None:
    """DDPM's, with its padding, its shift, its epsilon and one head."""
    found = table(take(save_folder(tmp_path / "model", CONFIG, SCHEDULER, state())))
    assert found["schedule"] == {"type": "linear", "timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    assert (found["resolution"], found["noise_input"], found["prediction"]) == (16, "timestep-from-0", "epsilon")
    assert (found["sampler"], found["threshold"]) == ({"type": "ancestral", "steps": 1000}, {"type": "static"})
    network = found["backbone"]
    assert (network["channels"], network["multipliers"], network["attention"], network["heads"]) == (32, [1, 2], [8], 1)
    assert (network["downsample_padding"], network["frequency_shift"], network["norm_eps"], network["norm_groups"]) == ("end", 1, 1e-6, 32)
    assert (network["middle_attention"], network["scale_shift"], network["resample"]) == (True, False, "conv")


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_small_log"}, "variance", "fixed-small"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "schedule", {"type": "cosine", "timesteps": 1000, "offset": 0.008, "max_beta": 0.999}),
        ({"prediction_type": "sample"}, "prediction", "x0"),
        ({"prediction_type": "v_prediction"}, "prediction", "v"),
        ({"clip_sample": False}, "threshold", {"type": "none"}),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2},
            "threshold",
            {"type": "dynamic", "percentile": 0.9, "largest": 2.0},
        ),
        (
            {"_class_name": "DDIMScheduler", "variance_type": "fixed_small"},
            "sampler",
            {"type": "ddim", "steps": 50, "spacing": {"type": "stride"}, "eta": 0.0},
        ),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "sampler", {"type": "ddim", "steps": 50, "eta": 0.0}),
        (
            {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "num_train_timesteps": 100},
            "sampler",
            {"type": "ddim", "steps": 50, "spacing": {"type": "sections", "counts": [1] * 50}, "eta": 0.0},
        ),
    ],
)
def test_each_setting_of_a_scheduler_changes_its_part(change: dict[str, Any], key: str, value: Any, tmp_path: Path) -> None:
    """Of the stage."""
    assert table(take(save_folder(tmp_path / "model", CONFIG, SCHEDULER | change, state())))[key] == value


def test_a_learned_variance_has_the_floor_that_is_there(tmp_path: Path) -> None:
    """1e-20 stands for the posterior's variance at t = 1; classes are those of the network."""
    name = "diffusers scale-shift"
    made = take(save_folder(tmp_path / "model", *DIFFUSERS[name], state(name)))
    found = table(made)
    assert (found["variance"], found["variance_floor"], found["loss"]["type"]) == ("learned-range", 1e-20, "hybrid")
    assert read(made.recipe, PLUGINS).data.classes == 5


def test_sines_before_cosines_are_turned_round(tmp_path: Path) -> None:
    """By the columns of the layer that takes them in; with flip_sin_to_cos they stay."""
    one = tensors(take(save_folder(tmp_path / "one", CONFIG, SCHEDULER, state())))
    other = tensors(take(save_folder(tmp_path / "other", CONFIG | {"flip_sin_to_cos": True}, SCHEDULER, state()), "flipped"))
    name, there = "embedding.noise.0.weight", state()["time_embedding.linear_1.weight"]
    assert torch.equal(other[name], there)
    assert torch.equal(one[name], torch.cat((there[:, 16:], there[:, :16]), dim=1))
    assert all(torch.equal(one[key], other[key]) for key in one if key != name)


def test_queries_keys_and_values_are_joined(tmp_path: Path) -> None:
    """In this order; a layer over vectors becomes one over pixels."""
    there, found = state(), tensors(take(save_folder(tmp_path / "model", CONFIG, SCHEDULER, state())))
    joined = torch.cat([there[f"mid_block.attentions.0.to_{part}.weight"] for part in "qkv"])
    assert torch.equal(found["middle.0.1.qkv.weight"], joined[:, :, None, None])


def test_names_of_the_first_versions_are_known(tmp_path: Path) -> None:
    """Attention had other names, and block types a prefix."""
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in state().items():
        for now, then in new.items():
            name = name.replace(now, then)
        old[name] = tensor
    types = {key: [f"UNetRes{kind}" for kind in CONFIG[key]] for key in ("down_block_types", "up_block_types")}
    one = tensors(take(save_folder(tmp_path / "new", CONFIG, SCHEDULER, state())))
    other = tensors(take(save_folder(tmp_path / "old", CONFIG | types, SCHEDULER, old), "before"))
    assert any("proj_attn" in name for name in old)
    assert all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name = UNet2DConditionModel: only UNet2DModel can be imported"),
        ({"sample_size": None}, "sample_size is missing"),
        ({"sample_size": [16, 16]}, "sample_size: must be an integer, not a list"),
        ({"in_channels": 6}, "in_channels = 6: cdmkit has only 3"),
        ({"out_channels": 6}, "out_channels = 6: cdmkit has only 3"),
        ({"center_input_sample": True}, "center_input_sample = true: cdmkit has only false"),
        ({"time_embedding_type": "fourier"}, 'time_embedding_type = "fourier": cdmkit has only "positional"'),
        ({"time_embedding_dim": 64}, "time_embedding_dim = 64: cdmkit has only null and 128"),
        ({"freq_shift": 2}, "freq_shift = 2: cdmkit has only 0 and 1"),
        ({"mid_block_type": None}, "mid_block_type = null"),
        ({"mid_block_scale_factor": 1.414}, "mid_block_scale_factor = 1.414"),
        ({"downsample_padding": 2}, "downsample_padding = 2"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
        ({"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups .* = null: cdmkit has only 32"),
        ({"attn_norm_num_groups": 8}, r"attn_norm_num_groups .* = 8"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels = \[32, 48\] are no whole multiples of the first"),
        ({"block_out_channels": [32, 64, 64]}, "must be of one length"),
        ({"block_out_channels": [], "down_block_types": [], "up_block_types": []}, "must be of one length, from 1"),
        ({"block_out_channels": [0, 0]}, "are no whole multiples"),
        (
            {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
            "down_block_types: SkipDownBlock2D cannot be imported, only DownBlock2D, ",
        ),
        ({"down_block_types": ["DownBlock2D", "UpBlock2D"]}, "down_block_types: UpBlock2D cannot be imported"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types = .*: attention on the way up must be at the resolutions"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}, "residual blocks must change every resolution, or none"),
        ({"upsample_type": "pixelshuffle"}, "downsample_type or upsample_type"),
        ({"attention_head_dim": 48}, "cannot be split among heads of head_channels = 48"),
        ({"layers_per_block": "two"}, 'layers_per_block: must be an integer, not the string "two"'),
        ({"dropout": 2}, "backbone.dropout: 2.0 is out of range"),
        ({"layers_per_blok": 2}, "layers_per_blok: unknown key"),
    ],
)
def test_networks_that_cdmkit_has_not_are_refused_by_the_key(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """With what it has, and the file that the key is in; nothing is written."""
    with pytest.raises(CheckpointError, match=words) as raised:
        take(save_folder(tmp_path / "model", CONFIG | change, SCHEDULER, state()))
    assert str(tmp_path / "model" / "unet") in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name = PNDMScheduler: only DDPMScheduler and DDIMScheduler can be imported"),
        ({"beta_schedule": "scaled_linear"}, 'beta_schedule = "scaled_linear": cdmkit has only "linear" and "squaredcos_cap_v2"'),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = true"),
        ({"variance_type": "learned"}, "variance_type"),
        ({"variance_type": "fixed_large_log"}, "variance_type"),
        ({"variance_type": "learned_range"}, "out_channels = 3: cdmkit has only 6"),
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"clip_sample_range": 2.0}, "clip_sample_range = 2.0"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "set_alpha_to_one = false"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 1}, "steps_offset = 1"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "karras"}, "timestep_spacing"),
        (
            {"_class_name": "DDIMScheduler", "num_train_timesteps": 75, "beta_end": 0.1},
            "the 50 steps of a DDIMScheduler do not divide it evenly",
        ),
        ({"beta_start": 0.5, "beta_end": 0.1}, "betas must rise within"),
        ({"beta_end": 0.9}, "alpha_bar ends at 0, where epsilon says nothing"),
        ({"num_train_timesteps": 0}, "schedule.timesteps: 0 is out of range"),
        ({"beta_strt": 0.1}, "beta_strt: unknown key"),
        ({"beta_start": "small"}, "beta_start: must be a number"),
    ],
)
def test_chains_that_cdmkit_has_not_are_refused_by_the_key(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """With what it has; nothing is written."""
    with pytest.raises(CheckpointError, match=words):
        take(save_folder(tmp_path / "model", CONFIG, SCHEDULER | change, state()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        ("[1]", "is no table of settings"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
    ids=["empty", "list", "cut off", "deep", "not text"],
)
@pytest.mark.parametrize("place", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_settings_are_said(content: str | bytes, words: str, place: str, tmp_path: Path) -> None:
    """With the file."""
    folder = save_folder(tmp_path / "model", CONFIG, SCHEDULER, state())
    (folder / place).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=f"{place} {words}"):
        take(folder)


def test_folders_in_which_something_is_missing_are_said(tmp_path: Path) -> None:
    """No folder, no settings, no weights."""
    with pytest.raises(CheckpointError, match="is no folder"):
        take(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        take(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"holds no weights: neither diffusion_pytorch_model\.safetensors nor"):
        take(tmp_path / "empty")


def test_weights_of_another_network_are_said_in_its_names(tmp_path: Path) -> None:
    """And that the settings are of another one."""
    found = state()
    del found["down_blocks.1.attentions.0.to_k.bias"]
    with pytest.raises(
        CheckpointError, match=r"down_blocks\.1\.attentions\.0\.to_k\.bias is missing, and should be \[64\].*config\.json is of another"
    ):
        take(save_folder(tmp_path / "model", CONFIG, SCHEDULER, found))
