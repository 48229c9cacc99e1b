"""Which timesteps sampling visits: the ends, the counts, and lists worked out by hand from the published rules."""

from __future__ import annotations

import pytest

from cdmkit.diffusion import even_timesteps, sectioned_timesteps, strided_timesteps


def test_every_even_respacing_visits_t_with_the_number_of_calls_asked_for() -> None:
    """For all small T and S: ascending, T among them, S network calls (pitfall: "leading" spacing never visits T)."""
    for timesteps in range(1, 41):
        for steps in range(1, timesteps + 1):
            visited = even_timesteps(timesteps, steps)
            assert visited == sorted(set(visited))
            assert (visited[0] >= 1, visited[-1], len(visited)) == (True, timesteps, steps)


def test_even_respacing_is_equal_spacing_of_1_to_t() -> None:
    """K equally spaced reals in [1, T], rounded; all of T is the full chain."""
    assert even_timesteps(4000, 5) == [1, 1001, 2001, 3000, 4000]  # the tie 1999.5 goes as in the published code
    assert even_timesteps(10, 4) == [1, 4, 7, 10]
    assert even_timesteps(10, 10) == list(range(1, 11))
    assert even_timesteps(10, 1) == [10]


@pytest.mark.parametrize(("timesteps", "steps"), [(2000, 15), (2000, 25), (500, 25), (1000, 21), (1000, 50), (4000, 250)])
def test_even_respacing_adds_up_a_stride_as_published_code_does(timesteps: int, steps: int) -> None:
    """In floating point, where a tie can fall to either side."""
    expected, place = [], 0.0
    for _ in range(steps):
        expected.append(1 + round(place))
        place += (timesteps - 1) / (steps - 1)
    assert even_timesteps(timesteps, steps) == expected


@pytest.mark.parametrize("steps", [0, 11])
def test_an_impossible_respacing_is_refused(steps: int) -> None:
    """No step, or more steps than timesteps."""
    with pytest.raises(ValueError, match="cannot respace 10 timesteps to"):
        even_timesteps(10, steps)


def test_a_stride_is_the_smallest_that_makes_the_number() -> None:
    """`ddim25` of 1000 timesteps is 1, 41, ..., 961; of 300, every 12th."""
    assert strided_timesteps(1000, 25) == list(range(1, 1000, 40))
    assert strided_timesteps(300, 25)[:3] == [1, 13, 25]
    assert strided_timesteps(7, 7) == list(range(1, 8))


def test_a_number_that_no_stride_makes_is_refused() -> None:
    """10 timesteps have strides of 10, 5, 4, 3, 2 and 1 visits only."""
    with pytest.raises(ValueError, match="no whole stride makes 7 of 10 timesteps"):
        strided_timesteps(10, 7)


def test_sections_are_each_spaced_evenly() -> None:
    """Of "2,3,5" in 30: both ends of the first ten, three of the second ten, every other or so of the last."""
    visited = sectioned_timesteps(30, [2, 3, 5])
    assert (len(visited), visited[:2], visited[2], visited[4], visited[5], visited[-1]) == (10, [1, 10], 11, 20, 21, 30)
    assert sectioned_timesteps(10, [10]) == list(range(1, 11))


def test_one_timestep_more_goes_to_the_first_sections() -> None:
    """11 timesteps in three sections have 4, 4 and 3."""
    assert sectioned_timesteps(11, [4, 4, 3]) == list(range(1, 12))
    assert sectioned_timesteps(11, [1, 0, 1]) == [4, 11]


@pytest.mark.parametrize(("counts", "words"), [([5, 4], "section 1 has 4 timesteps"), ([4, -1], "section 2"), ([0, 0], "no timestep")])
def test_sections_that_cannot_be_visited_are_refused(counts: list[int], words: str) -> None:
    """More than there are, fewer than none, or none at all."""
    with pytest.raises(ValueError, match=words):
        sectioned_timesteps(8, counts)
