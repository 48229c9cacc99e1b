"""What the backbones share: how a network is told things, a start at zero, and recomputation; held for each of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from cdmkit.builtin import embedding
from cdmkit.builtin.dit import DiT
from cdmkit.builtin.embedding import Embedding, Labels, sinusoidal
from cdmkit.builtin.unet import UNet
from cdmkit.component import evolve
from cdmkit.diffusion import Condition
from cdmkit.draws import Draw, Stream
from cdmkit.kinds import Backbone, NetworkSpec, key_dropout

UNET = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
DIT = DiT(patch=2, width=16, depth=2, heads=2, mlp_ratio=2)
FULL_SPEC = NetworkSpec(resolution=8, out_channels=6, classes=5, low_res=True, levels=2)

each_backbone = pytest.mark.parametrize("backbone", [UNET, DIT], ids=lambda backbone: backbone.type_name)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with its zero-initialised weights, and all others, set to small random numbers; not training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return module.eval()


def told(batch: int = 2, spec: NetworkSpec = FULL_SPEC, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Condition]:
    """x_t, noise levels and everything the spec says a network is told."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, spec.resolution, spec.resolution)
    x_t, low_res = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    label = torch.arange(batch) % spec.classes if spec.classes else None
    levels = torch.full((batch, spec.levels), 10.0, dtype=dtype) if spec.levels else None
    return x_t, torch.full((batch,), 100.0, dtype=dtype), Condition(label, low_res if spec.low_res else None, levels)


@each_backbone
@pytest.mark.parametrize("what", ["x_t", "noise level", "label", "low_res", "first level", "second level"])
def test_everything_a_network_is_told_changes_its_output(backbone: Backbone, what: str) -> None:
    """Of the example it is told for, and of no other in the batch."""
    network = awake(backbone.build(FULL_SPEC))
    x_t, noise_level, condition = told(3)
    assert condition.label is not None
    assert condition.low_res is not None
    assert condition.levels is not None
    parts = {"x_t": x_t, "noise level": noise_level, "label": condition.label, "low_res": condition.low_res}
    parts |= {"first level": condition.levels[:, 0], "second level": condition.levels[:, 1]}
    with torch.no_grad():
        before = network(x_t, noise_level, condition)
        parts[what][1] += 1
        after = network(x_t, noise_level, condition)
    differs = ((before - after).abs() > 1e-5).flatten(1).any(1)
    assert differs.tolist() == [False, True, False]


@each_backbone
def test_the_two_levels_are_told_apart(backbone: Backbone) -> None:
    """Exchanging them is not the same: each has an embedding of its own."""
    network = awake(backbone.build(FULL_SPEC))
    x_t, noise_level, condition = told()
    levels = torch.tensor([[3.0, 50.0], [3.0, 50.0]])
    with torch.no_grad():
        first = network(x_t, noise_level, condition._replace(levels=levels))
        second = network(x_t, noise_level, condition._replace(levels=levels.flip(1)))
    assert float((first - second).abs().max()) > 1e-3


@each_backbone
@pytest.mark.parametrize("levels", [None, torch.zeros(2, 1), torch.zeros(2, 3)], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_levels_is_not_passed_over(backbone: Backbone, levels: Tensor | None) -> None:
    """A network made for two levels is told two."""
    x_t, noise_level, condition = told()
    with pytest.raises(ValueError, match="zip"):
        backbone.build(FULL_SPEC)(x_t, noise_level, condition._replace(levels=levels))


@each_backbone
def test_no_label_is_told_apart_from_every_class(backbone: Backbone) -> None:
    """One image with each of the five classes and with -1 gives six outputs."""
    network = awake(backbone.build(attrs.evolve(FULL_SPEC, unlabeled=True)))
    x_t, noise_level, condition = told(6)
    assert condition.low_res is not None
    x_t, low_res = x_t[:1].expand(6, -1, -1, -1), condition.low_res[:1].expand(6, -1, -1, -1)
    with torch.no_grad():
        out = network(x_t, noise_level, Condition(torch.arange(-1, 5), low_res, condition.levels))
    assert float(torch.pdist(out.flatten(1), p=float("inf")).min()) > 1e-5


@each_backbone
def test_a_dropped_label_changes_its_own_example_alone(backbone: Backbone) -> None:
    """As labels are dropped in training, here and there in a batch."""
    network = awake(backbone.build(attrs.evolve(FULL_SPEC, unlabeled=True)))
    x_t, noise_level, condition = told(5)
    with torch.no_grad():
        kept = network(x_t, noise_level, condition)
        dropped = network(x_t, noise_level, condition._replace(label=torch.tensor([0, 1, -1, 3, 4])))
    assert ((kept - dropped).abs() > 1e-5).flatten(1).any(1).tolist() == [False, False, True, False, False]


@each_backbone
def test_a_noise_level_may_be_one_number_for_all(backbone: Backbone) -> None:
    """Expanded over the batch, without memory of its own, as samplers give it."""
    network = awake(backbone.build(FULL_SPEC))
    x_t, noise_level, condition = told()
    with torch.no_grad():
        assert torch.equal(network(x_t, noise_level[:1].expand(2), condition), network(x_t, noise_level, condition))


def test_no_label_has_the_last_row_of_the_table() -> None:
    """Which is trained where labels are dropped, and which no class has."""
    labels = Labels(classes=4, size=3, unlabeled=True)
    assert torch.equal(labels(torch.tensor([-1, 0, 3])), labels.weight[[4, 0, 3]])
    labels(torch.tensor([-1, 1])).sum().backward()
    assert labels.weight.grad is not None
    assert labels.weight.grad.any(1).tolist() == [False, True, False, False, True]


def test_a_network_that_cannot_be_told_no_label_says_so() -> None:
    """It has no row for -1, nor takes another's."""
    with pytest.raises(IndexError):
        Labels(classes=4, size=3, unlabeled=False)(torch.tensor([-1]))


def test_a_network_without_classes_has_no_row_for_no_label() -> None:
    """There is nothing to leave out."""
    spec = NetworkSpec(8, 3, unlabeled=True)
    assert Embedding(8, 16, spec).label is None


@pytest.mark.parametrize("shift", [0, 1])
def test_the_embedding_of_a_number_is_cosines_and_sines(shift: int) -> None:
    """Frequencies 10000^(-i / (half - shift)), in the precision of the number."""
    value = torch.tensor([0.0, 1.0, 3999.0], dtype=torch.float64)
    angles = value[:, None] * 10000.0 ** (-torch.arange(8, dtype=torch.float64) / (8 - shift))
    torch.testing.assert_close(sinusoidal(value, 16, shift), torch.cat((angles.cos(), angles.sin()), dim=1), rtol=1e-9, atol=1e-9)
    assert sinusoidal(value.float(), 16, shift).dtype == torch.float32


def test_all_that_is_told_is_summed_and_activated() -> None:
    """Noise level and levels by their sinusoidal embeddings and MLPs, all with the same frequencies, and the label's row."""
    module = awake(Embedding(8, 16, FULL_SPEC, frequency_shift=1))
    assert isinstance(module, Embedding)
    assert module.label is not None
    _, noise_level, condition = told()
    assert condition.label is not None
    assert condition.levels is not None
    total = module.noise(sinusoidal(noise_level, 8, 1)) + module.label.weight[condition.label]
    for index in range(2):
        total = total + module.levels[index](sinusoidal(condition.levels[:, index], 8, 1))
    torch.testing.assert_close(module(noise_level, condition), total * torch.sigmoid(total))


def test_what_is_told_is_embedded_in_float32() -> None:
    """Also under autocast, with the same bits: bf16 would take 3999 for 4000, and lose two digits of all else."""
    module = awake(Embedding(64, 32, FULL_SPEC))
    _, _, condition = told()
    levels = torch.tensor([3999.0, 4000.0])
    exact = module(levels, condition)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(levels, condition)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)
    assert not torch.equal(mixed[0], mixed[1])


@each_backbone
def test_gradients_reach_every_parameter(backbone: Backbone) -> None:
    """None is built and not used."""
    network = awake(backbone.build(attrs.evolve(FULL_SPEC, unlabeled=True)))
    network(*told()).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []


def trained(backbone: Backbone, bf16: bool, keyed: bool) -> tuple[list[Tensor], int]:
    """Gradients of a training step under a fixed seed, and the bytes kept for its backward pass, weights not counted."""
    network = awake(backbone.build(FULL_SPEC)).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    torch.manual_seed(0)
    if keyed:
        key_dropout(network, Draw(Stream.of(0), torch.arange(2)))
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = network(*told())
    out.square().sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None], sum(map(len, kept.values()))


@each_backbone
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("keyed", [False, True], ids=["torch's dropout", "the images' dropout"])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(backbone: Backbone, bf16: bool, keyed: bool) -> None:
    """Bit for bit, with dropout, and in mixed precision; a third of the bytes, and less in larger networks."""
    dropping = evolve(backbone, dropout=0.5)
    gradients, kept = trained(dropping, bf16, keyed)
    again, kept_again = trained(evolve(dropping, checkpoint=True), bf16, keyed)
    assert len(gradients) == len(again) > 0
    assert all(torch.equal(first, second) for first, second in zip(gradients, again, strict=True))
    assert 0 < kept_again < kept / 3


@each_backbone
@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_a_batch_are_those_of_its_parts(backbone: Backbone, parts: int) -> None:
    """To the precision of float64, with dropout: what an image loses is its own, and other layers lose other elements."""
    network = awake(evolve(backbone, dropout=0.5).build(FULL_SPEC)).train().double()
    x_t, noise_level, condition = told(4, dtype=torch.float64)
    images = torch.tensor([8, 2, 5, 1])

    def gradients(size: int) -> list[Tensor]:
        network.zero_grad()
        for at in range(0, 4, size):
            key_dropout(network, Draw(Stream.of(0), images[at : at + size]))
            some = Condition(*(None if each is None else each[at : at + size] for each in condition))
            network(x_t[at : at + size], noise_level[at : at + size], some).square().sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    for whole, split in zip(gradients(4), gradients(4 // parts), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@each_backbone
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_network_compiles_as_one_graph(backbone: Backbone, checkpoint: bool) -> None:
    """With its backward pass, under autocast, dropout and recomputation included; other images need no other graph."""
    network = awake(evolve(backbone, dropout=0.5, checkpoint=checkpoint).build(FULL_SPEC)).train().double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for image in range(3):
        found = []
        for each in (network, compiled):
            network.zero_grad()
            key_dropout(network, Draw(Stream.of(0), torch.tensor([image, image + 9])))
            each(*told(dtype=torch.float64)).square().sum().backward()
            found.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
        for plain, quick in zip(*found, strict=True):
            torch.testing.assert_close(plain, quick, rtol=1e-9, atol=1e-9)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@each_backbone
def test_checkpointing_costs_nothing_without_gradients(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling runs the blocks as they are."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(embedding, "without_keeping", refuse)
    network = awake(evolve(backbone, checkpoint=True).build(FULL_SPEC))
    with torch.no_grad():
        torch.testing.assert_close(network(*told()), awake(backbone.build(FULL_SPEC))(*told()))
    with pytest.raises(AssertionError):
        network(*told())


@each_backbone
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_network_is_traced_without_data(backbone: Backbone, checkpoint: bool) -> None:
    """As plans are made: built, and run forwards and backwards, with tensors that have shapes alone."""
    with FakeTensorMode():
        network = evolve(backbone, checkpoint=checkpoint).build(FULL_SPEC)
        image, one = torch.zeros(1, 3, 8, 8), torch.ones(1)
        out = network(image, one, Condition(one.long(), image, torch.zeros(1, 2)))
        out.sum().backward()
    assert out.shape == (1, 6, 8, 8)


@each_backbone
def test_dropout_acts_in_training_only(backbone: Backbone) -> None:
    """Two passes in training differ; out of training they are the same as without."""
    dropping = awake(evolve(backbone, dropout=0.5).build(FULL_SPEC))
    with torch.no_grad():
        torch.testing.assert_close(dropping(*told()), awake(backbone.build(FULL_SPEC))(*told()))
        dropping.train()
        assert not torch.allclose(dropping(*told()), dropping(*told()))


@each_backbone
def test_the_network_runs_in_float64(backbone: Backbone) -> None:
    """For parity checks; float32 agrees to its precision."""
    network = awake(backbone.build(FULL_SPEC))
    with torch.no_grad():
        single = network(*told())
        double = network.double()(*told(dtype=torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@each_backbone
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_network_runs_under_bf16_autocast(backbone: Backbone, layout: torch.memory_format) -> None:
    """In either memory layout, at late timesteps, no further from float64 than bf16 products are."""
    network = awake(backbone.build(FULL_SPEC))
    x_t, _, condition = told(dtype=torch.float64)
    late = torch.tensor([3999.0, 4000.0], dtype=torch.float64)
    single = Condition(*(each.float() if each is not None and each.is_floating_point() else each for each in condition))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(x_t.float().to(memory_format=layout), late.float(), single)
        exact = network.double()(x_t, late, condition)
    assert mixed.shape == exact.shape
    assert float((mixed.double() - exact).norm() / exact.norm()) < 0.01
