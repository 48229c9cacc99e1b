"""`cdmkit import`: published weights from a file to pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from tests import tiny
from tests.importing.cases import options, save

FAST = ("--set", "sample.count=2", "--set", "sample.batch=2")


def take(case: str, folder: Path, *arguments: object) -> Result:
    """`cdmkit import` of a case's files."""
    origin, flags = options(case)
    folder.mkdir(exist_ok=True)
    given = () if flags is None else ("--flags", flags)
    return tiny.call("import", origin, save(folder, case), *given, *arguments)


@pytest.mark.parametrize("case", ["Improved DDPM", "diffusers DDPM"])
def test_what_is_imported_can_be_sampled(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's path is printed; it validates, is shown, and runs as it is, without training and without data."""
    monkeypatch.chdir(tmp_path)
    result = take(case, tmp_path / "files", "--name", "found")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "found.toml\n", "")
    assert {path.name for path in tmp_path.iterdir()} == {"files", "found.toml", "found.safetensors"}
    assert tiny.call("validate", "found.toml").stdout == "found.toml: ok (base 16)\n"
    assert 'weights = "found.safetensors"' in tiny.call("show", "found.toml").stdout
    run = tiny.run(Path("found.toml"), *FAST, "--set", 'stage.base.sampler={ type = "ancestral", steps = 3 }')
    assert (run / "samples" / "base.png").is_file()


def test_an_upsampler_can_be_tried_on_drawn_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It enlarges the pictures that its recipe names."""
    monkeypatch.chdir(tmp_path)
    assert take("ADM upsampler", tmp_path / "files", "--name", "up").exit_code == 0
    run = tiny.run(Path("up.toml"), *FAST, "--set", "stage.sr64.sampler.steps=2")
    assert (run / "samples" / "sr64.png").is_file()


CASCADE = """\
schema = 1
name = "both"
data = { classes = 1000 }
[defaults.stage]
variance = "learned-range"
noise_input = "timestep-from-0"
loss = { type = "hybrid", vlb_weight = 0.001 }
sampler = { type = "ancestral", steps = 2 }
[stage.base]
resolution = 16
weights = "base.safetensors"
schedule = { type = "cosine" }
[stage.base.backbone]
type = "unet"
channels = 32
multipliers = [1, 2, 3]
blocks = 1
attention = [8, 4]
head_channels = 16
dropout = 0.1
resample = "residual"
[stage.sr64]
after = "base"
resolution = 64
weights = "up.safetensors"
schedule = { type = "linear" }
[stage.sr64.backbone]
type = "unet"
channels = 32
multipliers = [1, 2, 3, 4]
blocks = 1
attention = [16]
resample = "residual"
"""


def test_imported_stages_stand_in_a_cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base and an upsampler of other schedules, the second enlarging what the first makes; another resolution is refused."""
    monkeypatch.chdir(tmp_path)
    assert take("ADM 64x64", tmp_path / "base", "--name", "base").exit_code == 0
    assert take("ADM upsampler", tmp_path / "up", "--name", "up").exit_code == 0
    run = tiny.run(tiny.write(tmp_path, CASCADE, "both.toml"), *FAST)
    assert {path.name for path in (run / "samples").iterdir()} == {"base.png", "sr64.png", "sr64-00000.tar"}
    small = CASCADE.replace("resolution = 16", "resolution = 8").replace("attention = [8, 4]", "attention = [4]")
    source = 'data = { classes = 1000, source = { type = "shapes", resolution = 64 } }'
    other = small.replace('weights = "base.safetensors"', "train = { steps = 1, batch = 1 }").replace("data = { classes = 1000 }", source)
    result = tiny.call("run", tiny.write(tmp_path, other, "other.toml"), "--runs", tmp_path / "other")
    assert result.exit_code == 7
    assert "stage 'sr64' was trained as another one" in result.stderr


def test_a_model_without_a_scheduler_is_warned_of(tmp_path: Path) -> None:
    """On stderr; it is imported all the same."""
    folder = save(tmp_path, "diffusers DDPM")
    result = tiny.call("import", "diffusers", folder / "unet", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out' / 'unet.toml'}\n")
    assert result.stderr.startswith("warning: ")


class Harmful:
    """Runs a command when it is unpickled the common way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("origin", ["guided-diffusion", "improved-diffusion", "diffusers"])
def test_files_with_code_are_refused_and_not_run(origin: str, tmp_path: Path) -> None:
    """In a process of its own: exit code 7, and the command was not run."""
    marker, folder = tmp_path / "was-run", save(tmp_path, "diffusers DDPM")
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.ones(1), "b": Harmful(marker)}, path)
    process = tiny.start("import", origin, folder if origin == "diffusers" else path, "--out", tmp_path / "out")
    code, out, err = tiny.finish(process)
    assert (code, out) == (7, "")
    assert "asks for posix.system when it is read" in err
    assert "Traceback" not in err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("guided-difusion", "model.pt"), 2, 'did you mean "guided-diffusion"?'),
        (("guided-diffusion", "gone.pt"), 7, "gone.pt cannot be read: No such file or directory"),
        (("guided-diffusion", "."), 7, "is a folder"),
        (("guided-diffusion", "model.pt", "--flags", "--imagesize 64"), 2, 'did you mean "image_size"?'),
        (("guided-diffusion", "model.pt", "--flags", "--image_size 64"), 7, "holds another network"),
        (("guided-diffusion", "model.pt", "--name", "a b"), 2, "cannot be a recipe's name"),
        (("guided-diffusion", "web.pt"), 7, "is a web page"),
        (("guided-diffusion", "empty.pt"), 7, "is empty"),
        (("guided-diffusion", "cut.pt"), 7, "cut.pt is damaged or cut off"),
        (("diffusers", "gone"), 7, "is no folder"),
        (("diffusers", ".", "--flags", "--image_size 64"), 2, "there are none to give"),
        (("guided-diffusion",), 2, "Missing argument 'PATH'"),
    ],
)
def test_each_mistake_has_one_message_and_its_exit_code(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on stdout, nothing written."""
    monkeypatch.chdir(tmp_path)
    content = save(tmp_path, "DDPM").read_bytes()
    for name, start in (("web", b"<html>"), ("empty", b""), ("cut", content[:5000])):
        Path(f"{name}.pt").write_bytes(start)
    before = sorted(tmp_path.rglob("*"))
    result = tiny.call("import", *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert words in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
