"""Lists of shards, in the four forms that they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cdmkit.data.listing import Listed, Listing
from cdmkit.errors import DataError

SUM = "0123456789abcdef" * 4
OWN = {
    "classes": ["cat", "dog"],
    "crop": "adm",
    "splits": {
        "train": {"samples": 5, "shards": [{"file": "t-0.tar", "samples": 3, "bytes": 9, "sha256": SUM}, {"file": "t-1.tar", "bytes": 8}]},
        "val": {"shards": [{"file": "v-0.tar", "samples": 1, "bytes": 7}]},
    },
}
TIMM = {
    "splits": {
        "train": {"num_samples": 5, "filenames": ["t-0.tar", "t-1.tar"], "shard_lengths": [3, 2]},
        "validation": {"num_samples": 1, "filenames": ["v-0.tar"], "shard_lengths": [1]},
    }
}
WIDS = {"wids_version": 1, "shardlist": [{"url": "t-0.tar", "nsamples": 3}, {"url": "https://host/t-1.tar", "nsamples": 2}]}
OPEN_CLIP = {"t-0.tar": 3, "t-1.tar": 2}


def parsed(plain: Any) -> Listing:
    return Listing.parse(json.dumps(plain), "list.json")


def test_own() -> None:
    """A card tells splits, sizes, digests, classes and crop."""
    listing = parsed(OWN)
    assert listing.of("train", "") == {"t-0.tar": Listed(3, 9, SUM), "t-1.tar": Listed(None, 8, None)}
    assert listing.of("val", "") == {"v-0.tar": Listed(1, 7, None)}
    assert (listing.classes, listing.crop) == (("cat", "dog"), "adm")


@pytest.mark.parametrize(
    ("plain", "split", "second"), [(TIMM, "train", "t-1.tar"), (WIDS, "", "https://host/t-1.tar"), (OPEN_CLIP, "", "t-1.tar")]
)
def test_of_others(plain: Any, split: str, second: str) -> None:
    """Those of timm, wids and open_clip tell counts."""
    listing = parsed(plain)
    assert listing.of(split, "") == {"t-0.tar": Listed(samples=3), second: Listed(samples=2)}
    assert (listing.classes, listing.crop) == ((), "")


def test_split_must_be_chosen_among_several() -> None:
    """And exist, with the nearest name told."""
    with pytest.raises(DataError, match=r"list\.json has the splits train, validation: set `split`"):
        parsed(TIMM).of("", "list.json")
    with pytest.raises(DataError, match=r"there is no 'validaton'.*validation"):
        parsed(TIMM).of("validaton", "list.json")


@pytest.mark.parametrize(
    "plain",
    [
        [],
        3,
        {"splits": 1},
        {"splits": {"train": {}}},
        {"splits": {"train": {"shards": [{"file": "a.tar"}]}}},
        {"splits": {"train": {"shards": [{"file": "a.tar", "bytes": -1}]}}},
        {"splits": {"train": {"shards": [{"file": "a.tar", "bytes": 1, "sha256": "x"}]}}},
        {"splits": {"train": {"shards": [{"file": "../a.tar", "bytes": 1}]}}},
        {"splits": {"train": {"shards": [{"file": "/a.tar", "bytes": 1}]}}},
        {"splits": {"train": {"shards": [{"file": "a\0.tar", "bytes": 1}]}}},
        {"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": []}}},
        {"shardlist": [{"url": "a.tar"}]},
        {"a.tar": "3"},
        {"a.tar": True},
    ],
)
def test_what_is_no_list(plain: Any) -> None:
    """Anything else is one error that names the file: wrong types, missing keys, names that lead out of the folder."""
    with pytest.raises(DataError, match=r"list\.json cannot be read as a list of shards"):
        parsed(plain)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"])
def test_what_is_no_json(text: str) -> None:
    """So is what cannot be parsed."""
    with pytest.raises(DataError, match="cannot be read as a list"):
        Listing.parse(text, "list.json")
