"""What flags of OpenAI's code make, and how their tensors become ours."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdmkit.cascade import Stage
from cdmkit.errors import CdmkitError, CheckpointError, UsageError
from cdmkit.importing import import_weights, openai
from cdmkit.importing.flags import GUIDED, IMPROVED, Code, parse
from cdmkit.importing.published import Published, translate
from cdmkit.importing.writing import recipe_text, stage_of
from cdmkit.plugins import load_plugins
from cdmkit.recipe import read, to_table
from cdmkit.training import lasting, read_weights
from tests.importing.cases import OPENAI, golden, save, weights
from tests.markdown import DOCS, ROOT, blocks

PLUGINS = load_plugins()
_ADM = (
    "--attention_resolutions 32,16,8 --learn_sigma True --num_res_blocks 2 --resblock_updown True --use_fp16 True "
    "--use_scale_shift_norm True"
)

README: dict[str, tuple[Code, bool, str, float]] = {
    "64x64_diffusion": (
        GUIDED,
        False,
        f"{_ADM} --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --use_new_attention_order True",
        296,
    ),
    "128x128_diffusion": (
        GUIDED,
        False,
        f"{_ADM} --class_cond True --image_size 128 --noise_schedule linear --num_channels 256 --num_heads 4",
        422,
    ),
    "256x256_diffusion": (GUIDED, False, f"{_ADM} --class_cond True --image_size 256 --num_channels 256 --num_head_channels 64", 554),
    "64_256_upsampler": (GUIDED, True, f"{_ADM} --class_cond True --large_size 256 --small_size 64 --num_channels 192 --num_heads 4", 312),
    "128_512_upsampler": (
        GUIDED,
        True,
        f"{_ADM} --class_cond True --large_size 512 --small_size 128 --num_channels 192 --num_head_channels 64 "
        "--attention_resolutions 32,16",
        309,
    ),
    "imagenet64_cond_270M_250K": (
        IMPROVED,
        False,
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True --diffusion_steps 4000 "
        "--noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False",
        273,
    ),
    "upsample_cond_500K": (
        IMPROVED,
        True,
        "--num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond True --diffusion_steps 4000",
        280,
    ),
}
"""Published weights: code, whether they enlarge, flags, and parameters in millions."""


def made(flags: str, code: Code = GUIDED, enlarges: bool = False, tensors: Mapping[str, Tensor] | None = None) -> Published:
    """What is found in a file with these tensors."""
    table = openai.stage(parse(flags, code, enlarges), code, enlarges)
    return Published(
        source="file", stage=table, tensors=tensors or {}, dialect=openai.DIALECT, fault=UsageError, data={"classes": 0}, origin={}
    )


def stage(flags: str, code: Code = GUIDED, enlarges: bool = False) -> Stage:
    """The stage that flags make."""
    published = made(flags, code, enlarges)
    return stage_of(published, recipe_text(published, "found", Path("weights.safetensors")), PLUGINS)


@pytest.mark.parametrize("name", README)
def test_published_networks_have_their_size(name: str) -> None:
    """Parameters in millions: of ADM as published; of Improved DDPM as its README rounds them (270 and 280)."""
    code, enlarges, flags, millions = README[name]
    found = stage(flags, code, enlarges)
    with torch.device("meta"):
        network = found.backbone.build(found.network_spec(1000))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.7)


def test_a_stage_says_what_the_flags_say() -> None:
    """Every part of ADM's 64x64 network."""
    code, _, flags, _ = README["64x64_diffusion"]
    found = to_table(stage(flags, code))
    assert found["schedule"] == {"type": "cosine", "timesteps": 1000, "offset": 0.008, "max_beta": 0.999}
    assert (found["prediction"], found["variance"], found["noise_input"]) == ("epsilon", "learned-range", "timestep-from-0")
    assert found["loss"]["vlb_weight"] == 0.001
    network = found["backbone"]
    assert (network["multipliers"], network["attention"], network["head_channels"]) == ([1, 2, 3, 4], [32, 16, 8], 64)
    assert (network["dropout"], network["scale_shift"], network["resample"], network["channels"]) == (0.1, True, "residual", 192)
    assert found["weights"] == "weights.safetensors"


@pytest.mark.parametrize(
    ("flags", "code", "key", "value"),
    [
        ("", GUIDED, "variance", "fixed-large"),
        ("--sigma_small True", IMPROVED, "variance", "fixed-small"),
        ("--predict_xstart True", GUIDED, "prediction", "x0"),
        ("", IMPROVED, "noise_input", "timestep-of-1000"),
        ("--rescale_timesteps True", GUIDED, "noise_input", "timestep-of-1000"),
        ("", GUIDED, "noise_input", "timestep-from-0"),
        ("", GUIDED, "loss", {"type": "simple"}),
        ("--use_kl True", GUIDED, "loss", {"type": "vlb"}),
        ("--learn_sigma True --diffusion_steps 4000", GUIDED, "loss", {"type": "hybrid", "vlb_weight": 1 / 4000}),
        ("--learn_sigma True --diffusion_steps 4000", IMPROVED, "loss", {"type": "hybrid", "vlb_weight": 0.001}),
        ("--noise_schedule linear --diffusion_steps 200", GUIDED, "schedule", {"type": "linear", "timesteps": 200}),
        ("--clip_denoised False", GUIDED, "threshold", {"type": "none"}),
        ("", GUIDED, "sampler", {"type": "ancestral", "steps": 250}),
        ("--diffusion_steps 100", GUIDED, "sampler", {"type": "ancestral", "steps": 100}),
        ("--timestep_respacing 1000", GUIDED, "sampler", {"type": "ancestral", "steps": 1000}),
        ("--use_ddim True --timestep_respacing 25", GUIDED, "sampler", {"type": "ddim", "steps": 25}),
        ("--timestep_respacing ddim25", GUIDED, "sampler", {"type": "ddim", "steps": 25, "spacing": {"type": "stride"}}),
        (
            "--timestep_respacing ddim25 --use_ddim False",
            GUIDED,
            "sampler",
            {"type": "ancestral", "steps": 25, "spacing": {"type": "stride"}},
        ),
        (
            "--timestep_respacing 10,15,20",
            GUIDED,
            "sampler",
            {"type": "ancestral", "steps": 45, "spacing": {"type": "sections", "counts": [10, 15, 20]}},
        ),
    ],
)
def test_each_flag_changes_its_part(flags: str, code: Code, key: str, value: Any) -> None:
    """Of the stage's table."""
    assert made(flags, code).stage[key] == value
    stage(flags, code)


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--image_size 32 --channel_mult 1,2,2 --attention_resolutions 16,8", "attention", [16, 8]),
        ("--image_size 32 --channel_mult 1,2 --attention_resolutions 16,8", "attention", [16]),
        ("--image_size 64 --attention_resolutions 20", "attention", []),
        ("--image_size 64 --attention_resolutions 24", "attention", [32]),
        ("--num_heads 2", "heads", 2),
        ("--num_heads 2 --num_heads_upsample 2", "heads", 2),
        ("--num_heads_upsample 2 --num_head_channels 32", "head_channels", 32),
        ("--use_checkpoint True", "checkpoint", True),
        ("--use_scale_shift_norm False", "scale_shift", False),
    ],
)
def test_each_flag_changes_its_part_of_the_network(flags: str, key: str, value: Any) -> None:
    """Attention goes by how often the image is halved, rounded as there."""
    assert made(flags).stage["backbone"][key] == value
    stage(flags)


@pytest.mark.parametrize(
    ("flags", "enlarges", "words"),
    [
        ("--image_size 512", False, "begins at half of num_channels"),
        ("--image_size 48", False, "for 48 x 48 pixels: it has them for 64, 128, 256, 512, or with --channel_mult"),
        ("--large_size 128", True, "for 128 x 128 pixels: it has them for 64, 256, 512"),
        ("--channel_mult 0.5,1", False, "--channel_mult 0.5,1: must be whole numbers from 1"),
        ("--attention_resolutions 16,0", False, "--attention_resolutions 16,0: must be whole numbers from 1"),
        ("--num_heads 4 --num_heads_upsample 2", False, "as many heads on the way up"),
        ("--noise_schedule cosin", False, 'must be linear or cosine; did you mean "cosine"'),
        ("--timestep_respacing 10,1", False, "of a section with one timestep the code visits the cleanest"),
        ("--timestep_respacing 0", False, "must be whole numbers from 1"),
        ("--timestep_respacing ddim10,10", False, "a stride makes one section"),
        ("--timestep_respacing 1001", False, "stage.base.sampler: cannot respace 1000 timesteps to 1001"),
        ("--timestep_respacing ddim999", False, "no whole stride makes 999"),
        ("--dropout 1.5", False, "cdmkit has no such stage: stage.base.backbone.dropout: 1.5 is out of range"),
        ("--diffusion_steps 0", False, "schedule.timesteps: 0 is out of range"),
        ("--diffusion_steps 10", False, "betas must rise within"),
        ("--large_size 64 --small_size 24", True, "64 is not 2, 3, 4, ... times 24"),
        ("--large_size 64 --small_size 64", True, "64 is not 2, 3, 4, ... times 64"),
        ("--image_size 64 --channel_mult 1,1,1,1,1,1,1,1", False, "64 is not a multiple of 128"),
    ],
)
def test_what_cdmkit_has_not_is_refused_in_words(flags: str, enlarges: bool, words: str) -> None:
    """A usage error."""
    with pytest.raises(UsageError, match=re.escape(words)):
        stage(flags, GUIDED, enlarges)


@pytest.mark.parametrize(
    ("flags", "words"),
    [("--num_heads 3", "cannot be split among heads = 3"), ("--num_channels 50", "channels = 50 is not a multiple of 4")],
)
def test_networks_that_cannot_be_are_usage_errors(flags: str, words: str, tmp_path: Path) -> None:
    """Whatever the file holds."""
    with pytest.raises(UsageError, match=words):
        take(save(tmp_path, "DDPM"), f"{OPENAI['DDPM'][1]} {flags}")


def test_rows_of_queries_keys_and_values_are_brought_into_our_order() -> None:
    """[heads, 3, head channels] becomes [3, heads, head channels]; other tensors stay."""
    rows = torch.tensor([0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]).view(12, 1, 1)  # 20 and on: values; units: their channels
    ours = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    for flags in ("--num_heads 2", "--num_heads 4 --num_head_channels 2"):
        adjusted = openai._split_before_heads(parse(flags, GUIDED, False), "middle.0.1.qkv.weight", rows)
        assert adjusted.shape == rows.shape
        assert adjusted.flatten().tolist() == ours
        assert openai._split_before_heads(parse(flags, GUIDED, False), "conv_in.weight", rows) is rows


def take(path: Path, flags: str, origin: str = "guided-diffusion") -> dict[str, Tensor]:
    """Import a file, which must work; its tensors under our names."""
    out = path.parent / "out"
    import_weights(origin, path, flags, "found", out, PLUGINS)
    tensors, _ = read_weights(out / "found.safetensors")
    return dict(tensors)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    """As far as it goes."""
    full = take(save(tmp_path, "DDPM"), OPENAI["DDPM"][1])
    half = {name: tensor.half() for name, tensor in weights(golden("DDPM")["tensors"]).items()}
    (tmp_path / "half").mkdir()
    torch.save(half, tmp_path / "half" / "model.pt")
    for name, tensor in take(tmp_path / "half" / "model.pt", OPENAI["DDPM"][1]).items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, full[name].half().float())


def test_safetensors_are_taken_as_well(tmp_path: Path) -> None:
    """The same tensors, the same result."""
    one = take(save(tmp_path, "DDPM"), OPENAI["DDPM"][1])
    (tmp_path / "safe").mkdir()
    save_file(weights(golden("DDPM")["tensors"]), tmp_path / "safe" / "model.safetensors")
    other = take(tmp_path / "safe" / "model.safetensors", OPENAI["DDPM"][1])
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_classes_are_counted_in_the_file(tmp_path: Path) -> None:
    """Their code always makes 1000, others who use it do not."""
    state = weights(golden("Improved DDPM")["tensors"])
    state["label_emb.weight"] = state["label_emb.weight"][:7].clone()
    torch.save(state, tmp_path / "model.pt")
    take(tmp_path / "model.pt", OPENAI["Improved DDPM"][1])
    assert read(tmp_path / "out" / "found.toml", PLUGINS).data.classes == 7


def test_the_other_code_makes_the_same_network_of_more_flags(tmp_path: Path) -> None:
    """Improved DDPM's defaults, spelt out."""
    path, (origin, flags) = save(tmp_path, "Improved DDPM 32x32"), OPENAI["Improved DDPM 32x32"]
    spelt = f"{flags} --channel_mult 1,2,2,2 --rescale_timesteps True --rescale_learned_sigmas True"
    one = take(path, flags, origin)
    stages = [read(tmp_path / "out" / "found.toml", PLUGINS).stage["base"]]
    shutil.rmtree(tmp_path / "out")
    other = take(path, spelt, "guided-diffusion")
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    stages.append(read(tmp_path / "out" / "found.toml", PLUGINS).stage["base"])
    assert stages[0] == stages[1]


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("DDPM", "--num_channels 64", "--num_channels 32"),
        ("DDPM", "--num_res_blocks 1", "--num_res_blocks 2"),
        ("DDPM", "--channel_mult 1,2,2", "channels times 1,2"),
        ("DDPM", "--channel_mult 1,3", "channels times 1,2"),
        ("DDPM", "--attention_resolutions 16", "--attention_resolutions 8"),
        ("DDPM", "--class_cond True", "--class_cond False"),
        ("DDPM", "--learn_sigma True", "--learn_sigma False"),
        ("DDPM", "--use_scale_shift_norm True", "--use_scale_shift_norm False"),
        ("DDPM", "--resblock_updown True", "--resblock_updown False"),
        ("Improved DDPM", "--class_cond False", "--class_cond True"),
        ("ADM 64x64", "--resblock_updown False", "--resblock_updown True"),
        ("ADM 64x64", "--num_res_blocks 2", "--num_res_blocks 1"),
        ("ADM 128x128", "--learn_sigma False", "--learn_sigma True"),
        ("ADM upsampler", "--class_cond False", "--class_cond True"),
        ("ADM upsampler", "--attention_resolutions 8", "--attention_resolutions 16"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_the_flag_to_blame(case: str, change: str, words: str, tmp_path: Path) -> None:
    """In the names of the file; and no other flag is blamed."""
    with pytest.raises(CheckpointError) as raised:
        take(save(tmp_path, case), f"{OPENAI[case][1]} {change}")
    told = str(raised.value)
    assert told.startswith(f"{tmp_path / 'model.pt'} holds another network: ")
    assert "down." not in told
    assert told.partition("By its tensors it was made with ")[2].split(" (")[0].rstrip(".") == words
    assert not (tmp_path / "out").exists()


def test_differences_are_counted(tmp_path: Path) -> None:
    """The first are told."""
    state = weights(golden("DDPM")["tensors"])
    del state["out.0.bias"]
    torch.save({**state, "extra": torch.ones(3), "out.2.bias": torch.ones(4)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as raised:
        take(tmp_path / "model.pt", OPENAI["DDPM"][1])
    told = str(raised.value)
    assert "out.0.bias is missing, and should be [32]; out.2.bias is [4], and should be [3]; extra is [3], and should be left out." in told
    with pytest.raises(CheckpointError, match=r"; and \d+ more\."):
        take(tmp_path / "model.pt", "--image_size 16 --channel_mult 1,2,2")


@pytest.mark.parametrize(
    ("tensors", "flags", "words"),
    [
        ({"layer.weight": [3, 3]}, "", "not named as those of a diffusion network"),
        ({"time_embed.0.weight": [512, 128]}, "", "It has no way up: is it a classifier"),
        ({"input_blocks.0.0.weight": [128, 6, 3, 3]}, "--image_size 64", "knows no --image_size for a network that enlarges"),
        ({"input_blocks.0.0.weight": [128, 3, 3, 3]}, "--large_size 64 --small_size 16", "holds another network"),
    ],
)
def test_other_networks_are_told_apart(tensors: dict[str, list[int]], flags: str, words: str, tmp_path: Path) -> None:
    """Classifiers, upsamplers, and what is of another code."""
    torch.save(weights(tensors), tmp_path / "model.pt")
    with pytest.raises(CdmkitError, match=words):
        take(tmp_path / "model.pt", flags)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """They name the tensor."""
    state = weights(golden("DDPM")["tensors"])
    state["out.2.bias"][1] = float("nan")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"out\.2\.bias holds NaN or infinity"):
        take(tmp_path / "model.pt", OPENAI["DDPM"][1])


@pytest.mark.parametrize("name", OPENAI)
def test_a_translation_takes_every_tensor_once(name: str) -> None:
    """Ours are made of all of theirs, and of nothing else."""
    (origin, flags), shapes = OPENAI[name], golden(name)["tensors"]
    code, enlarges = IMPROVED if origin == "improved-diffusion" else GUIDED, "--large_size" in flags
    found = stage(flags, code, enlarges)
    with torch.device("meta"):
        network = found.backbone.build(found.network_spec(1000 if "label_emb.weight" in shapes else 0))
    published = made(flags, code, enlarges)
    used = [theirs for ours in network.state_dict() for theirs in openai.DIALECT.names(ours, published.stage["backbone"]["blocks"])]
    assert sorted(used) == sorted(shapes)


@pytest.mark.parametrize("name", ["base", "sr256"])
@pytest.mark.parametrize("page", [False, True], ids=["shipped", "how-to"])
def test_the_cascades_that_we_show_take_what_is_imported(page: bool, name: str, tmp_path: Path) -> None:
    """recipes/adm-upsampled-256.toml, and the one on the page on importing, say of both stages what the published flags make."""
    path = ROOT / "recipes" / "adm-upsampled-256.toml"
    if page:
        path = tmp_path / "adm-u.toml"
        (block,) = blocks(DOCS / "how-to" / "import-published-weights.md", "toml")
        path.write_text(block.text)
    recipe = read(path, PLUGINS)
    code, enlarges, flags, _ = README["64x64_diffusion" if name == "base" else "64_256_upsampler"]
    asked = recipe.stage[name]
    parent = recipe.cascade.parent(asked)
    imported = lasting(to_table(stage(flags, code, enlarges)), None)
    assert lasting(to_table(asked), to_table(parent)) == imported


def test_translate_may_keep_precision() -> None:
    """For comparisons in float64, as of gradients."""
    shapes = golden("DDPM")["tensors"]
    flags = OPENAI["DDPM"][1]
    found = stage(flags)
    network = found.backbone.build(found.network_spec(0))
    tensors = {name: tensor.double() + 1e-12 for name, tensor in weights(shapes).items()}
    kept = translate(made(flags, tensors=tensors), network, torch.float64)
    assert torch.equal(kept["conv_out.bias"], tensors["out.2.bias"])
