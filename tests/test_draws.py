"""Draws: Philox by its published vectors and by a second implementation, independence from the batch, and distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cdmkit.draws import Draw, Stream, philox

ONES = 0xFFFFFFFF
STREAM = Stream.of(7, "tests")


def words(*values: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (torch.tensor([value]) for value in values)
    return a, b, c, d


def philox_in_python(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 with Python's unbounded integers, as Salmon et al. write it down."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        high_a, low_a = divmod(a * 0xD2511F53, 2**32)
        high_c, low_c = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ m, low_a
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_words(counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """The known-answer vectors of Random123."""
    assert tuple(int(word) for word in philox(words(*counter), key)) == expected


def test_philox_equals_a_second_implementation() -> None:
    """Random counters and keys, against unbounded integers."""
    numbers = np.random.default_rng(0).integers(0, 2**32, size=(50, 6)).tolist()
    for a, b, c, d, k, m in numbers:
        assert tuple(int(word) for word in philox(words(a, b, c, d), (k, m))) == philox_in_python((a, b, c, d), (k, m))


def test_bits_lay_out_the_counter_as_block_step_and_index() -> None:
    """Word 4 b + w of image i at a step is word w of Philox(b, step, low half of i, high half of i)."""
    index = 5 + (9 << 32)
    (row,) = STREAM.bits(torch.tensor([index]), 11, step=3).tolist()
    expected = [word for block in range(3) for word in philox_in_python((block, 3, 5, 9), STREAM.key)]
    assert row == expected[:11]


def test_a_draw_depends_on_its_image_alone() -> None:
    """Bitwise the same for an image alone, in a batch, and in the batch reversed."""
    indices = torch.tensor([3, 0, 2**33 + 1, 41])
    together = STREAM.normal(indices, (3, 5, 5), step=2)
    assert torch.equal(STREAM.normal(indices.flip(0), (3, 5, 5), step=2).flip(0), together)
    for row, index in enumerate(indices):
        assert torch.equal(STREAM.normal(index.view(1), (3, 5, 5), step=2)[0], together[row])


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    """Asking for more numbers changes none of the first."""
    index = torch.arange(2)
    assert torch.equal(STREAM.normal(index, (7,)), STREAM.normal(index, (12,))[:, :7])


@pytest.mark.parametrize(
    "other",
    [
        Stream.of(8, "tests").uniform(torch.tensor([4]), 64, step=1),
        Stream.of(7, "tests", 0).uniform(torch.tensor([4]), 64, step=1),
        Stream.of(7, "test", "s").uniform(torch.tensor([4]), 64, step=1),
        STREAM.uniform(torch.tensor([4]), 64, step=2),
        STREAM.uniform(torch.tensor([5]), 64, step=1),
        STREAM.uniform(torch.tensor([4 + 2**32]), 64, step=1),
    ],
    ids=["seed", "more words", "split words", "step", "index", "high half of the index"],
)
def test_another_purpose_gives_other_numbers(other: Tensor) -> None:
    """No number is shared with a stream, step or index that differs anywhere."""
    mine = STREAM.uniform(torch.tensor([4]), 64, step=1)
    assert not bool(torch.isin(mine, other).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform(dtype: torch.dtype) -> None:
    """In [0, 1), with the mean and variance of U(0, 1) and evenly filled tenths."""
    drawn = STREAM.uniform(torch.arange(200), 500, dtype=dtype)
    assert drawn.dtype == dtype
    assert 0 <= float(drawn.min()) < 1e-3
    assert 1 - 1e-3 < float(drawn.max()) < 1
    assert float(drawn.double().mean()) == pytest.approx(1 / 2, abs=4 / math.sqrt(12 * drawn.numel()))
    assert float(drawn.double().var()) == pytest.approx(1 / 12, rel=0.02)
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_the_finest_step_of_a_uniform_float32_stays_below_one() -> None:
    """The largest 32-bit word becomes the largest float32 below 1, not 1."""
    assert float((torch.tensor([ONES]) >> 8).float() * 2.0**-24) == 1 - 2.0**-24
    steps = STREAM.uniform(torch.arange(50), 400) * 2**24
    assert bool((steps % 1 == 0).all())
    assert bool((steps % 2 == 1).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype: torch.dtype) -> None:
    """Moments of N(0, 1) up to the fourth, the bound of 32-bit Box-Muller, and the share within one deviation."""
    drawn = STREAM.normal(torch.arange(100), (2000,), dtype=dtype)
    assert drawn.dtype == dtype
    x = drawn.double().flatten()
    error = 4 / math.sqrt(len(x))
    assert float(x.mean()) == pytest.approx(0, abs=error)
    assert float(x.var()) == pytest.approx(1, abs=2 * error)
    assert float((x**3).mean()) == pytest.approx(0, abs=4 * error)
    assert float((x**4).mean()) == pytest.approx(3, abs=10 * error)
    assert float((x.abs() < 1).double().mean()) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=error)
    assert 3.5 < float(x.abs().max()) < 6.7


def test_normal_equals_box_muller_of_the_words() -> None:
    """float64 draws against the transform written with `math`."""
    bits = STREAM.bits(torch.tensor([6]), 4, step=1)[0].tolist()
    expected = []
    for first, second in (bits[:2], bits[2:]):
        radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
        expected += [radius * math.cos(2 * math.pi * second / 2**32), radius * math.sin(2 * math.pi * second / 2**32)]
    drawn = STREAM.normal(torch.tensor([6]), (3,), step=1, dtype=torch.float64)[0]
    torch.testing.assert_close(drawn, torch.tensor(expected[:3], dtype=torch.float64), rtol=1e-12, atol=0)


def test_float32_draws_are_the_float64_ones_rounded() -> None:
    """A run in double precision sees the same noise."""
    index = torch.arange(50)
    single, double = (STREAM.normal(index, (64,), dtype=dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single, double.float(), rtol=0, atol=5e-6)


def test_neighbouring_draws_do_not_correlate() -> None:
    """Pixels, images, steps and the two halves of a Box-Muller pair go their own ways."""
    index = torch.arange(300)
    here, next_step = (STREAM.normal(index, (200,), step=step).double() for step in (0, 1))
    limit = 4 / math.sqrt(here.numel())
    assert abs(float((here[:, :-1] * here[:, 1:]).mean())) < limit
    assert abs(float((here[:-1] * here[1:]).mean())) < limit
    assert abs(float((here * next_step).mean())) < limit
    assert abs(float((here[:, 0::2].square() * here[:, 1::2].square()).mean()) - 1) < 6 * limit


def test_integers_fill_their_range_evenly() -> None:
    """{3, ..., 9}: both ends are drawn, nothing outside, and a chi-square test sees no preference."""
    drawn = STREAM.integers(torch.arange(70_000), 3, 9)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=10)
    assert counts[:3].sum() == 0
    assert counts.sum() == 70_000
    assert len(counts) == 10
    assert float(((counts[3:] - 10_000.0) ** 2 / 10_000).sum()) < 22.5  # 99.9 % of chi-square with 6 degrees of freedom


def test_integers_of_one_value_are_that_value() -> None:
    """{5, ..., 5} leaves no choice."""
    assert STREAM.integers(torch.arange(9), 5, 5).tolist() == [5] * 9


def test_integers_scale_the_first_word() -> None:
    """The first word w gives low + floor(w (high - low + 1) / 2^32), here for the range of timesteps."""
    index = torch.arange(100)
    word = STREAM.bits(index, 1)[:, 0].tolist()
    assert STREAM.integers(index, 1, 4000).tolist() == [1 + w * 4000 // 2**32 for w in word]


def test_a_permutation_holds_each_index_once_and_changes_with_the_epoch() -> None:
    """Epochs are shuffled differently, the same epoch always the same."""
    first, again, second = STREAM.permutation(1000, 0), STREAM.permutation(1000, 0), STREAM.permutation(1000, 1)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, again)
    assert (first == second).mean() < 0.02
    assert (first == np.arange(1000)).mean() < 0.02


def test_a_draw_binds_a_stream_to_a_batch() -> None:
    """A Draw gives its stream's numbers for its images, in its dtype, scaled to the range asked for."""
    index = torch.tensor([4, 1])
    draw = Draw(STREAM, index, torch.float64)
    assert torch.equal(draw.normal((2, 3), step=5), STREAM.normal(index, (2, 3), 5, torch.float64))
    assert torch.equal(draw.integers(0, 50, step=2), STREAM.integers(index, 0, 50, 2))
    plain = STREAM.uniform(index, 1, 3, torch.float64)[:, 0]
    assert torch.equal(draw.uniform(0.5, 2.5, step=3), 0.5 + 2 * plain)


def test_streams_with_the_same_name_are_equal() -> None:
    """A stream is a value: its seed and words alone make it."""
    assert Stream.of(1, "a", 2) == Stream.of(1, "a", 2)
    assert hash(Stream.of(1, "a", 2)) == hash(Stream.of(1, "a", 2))
    assert Stream.of(1, "a", 2) != Stream.of(1, "a", 3)
