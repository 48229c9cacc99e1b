"""Which files a `shards` pattern means, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdmkit.data.find import expand_braces, find_shards, locate
from cdmkit.errors import DataError


def make(folder: Path, *names: str) -> list[Path]:
    """Files with a byte each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("{only}.tar", ["{only}.tar"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    """Ranges keep their width, lists their order, and single words their braces."""
    assert list(expand_braces(pattern)) == names


def test_wildcards_are_sorted(tmp_path: Path) -> None:
    """A wildcard gives files in order of name."""
    paths = make(tmp_path, "t-1.tar", "t-0.tar", "v-0.tar")
    assert find_shards(f"{tmp_path}/t-*.tar") == sorted(paths[:2])


def test_each_file_once(tmp_path: Path) -> None:
    """A file that is named twice is read once."""
    (path,) = make(tmp_path, "a.tar")
    assert find_shards(f"{tmp_path}/{{a,*}}.tar") == [path]


@pytest.mark.parametrize("folder", ["with blank", "a#b", "what?", "[v1]", "é中", "a*b"])
def test_odd_names(tmp_path: Path, folder: str) -> None:
    """A folder or file that exists is itself, whatever letters it has."""
    paths = make(tmp_path / folder, f"{folder}-0.tar", f"{folder}-1.tar")
    make(tmp_path / "whatX", "what?-2.tar")
    assert find_shards(str(paths[0])) == paths[:1]
    assert find_shards(f"{tmp_path}/{folder}/*.tar") == paths


def test_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative pattern starts at the working directory."""
    make(tmp_path / "d", "a.tar")
    monkeypatch.chdir(tmp_path)
    assert find_shards("d/*.tar") == [Path("d/a.tar")]
    with pytest.raises(DataError, match=f"{tmp_path}/e, which does not exist"):
        find_shards("e/*.tar")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home folder."""
    (path,) = make(tmp_path, "a.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_shards("~/a.tar") == [path]


def test_missing_folder(tmp_path: Path) -> None:
    """The part of the path that is not there is named, and how to mend it."""
    with pytest.raises(DataError, match=r"no training data: .*/none, which does not exist; .* CDMKIT_DATA .* --set data\.source\.shards="):
        find_shards(f"{tmp_path}/none/train-*.tar")


def test_no_match_tells_what_is_there(tmp_path: Path) -> None:
    """Files of similar names are shown."""
    make(tmp_path, "train-0.tar", "notes.txt")
    with pytest.raises(DataError, match=r"similar there: train-0\.tar"):
        find_shards(f"{tmp_path}/trian-*.tar")
    with pytest.raises(DataError, match=r"similar there: train-0\.tar"):
        find_shards(f"{tmp_path}/x-*.tar")


def test_no_match_in_an_empty_folder(tmp_path: Path) -> None:
    """An empty folder is told as such."""
    with pytest.raises(DataError, match=r"no \.tar file is there"):
        find_shards(f"{tmp_path}/*.tar")


def test_every_name_of_a_brace_must_be_there(tmp_path: Path) -> None:
    """A missing shard of a range is an error, never a shorter epoch."""
    make(tmp_path, "t-0.tar", "t-2.tar")
    with pytest.raises(DataError, match=r"matches no file"):
        find_shards(f"{tmp_path}/t-{{0..2}}.tar")


def test_folder_is_no_shard(tmp_path: Path) -> None:
    """A folder is answered with a pattern for its files."""
    with pytest.raises(DataError, match=r"is a folder: .*\*\.tar"):
        find_shards(str(tmp_path))


@pytest.mark.parametrize("pattern", ["pipe:cat x.tar", "http://host/x.tar", "s3://bucket/x-{0..3}.tar"])
def test_only_local_files(pattern: str) -> None:
    """Neither shell commands nor addresses are opened."""
    with pytest.raises(DataError, match="no shell command is ever run"):
        find_shards(pattern)


@pytest.mark.parametrize("pattern", ["pipe:cat x.tar", "ftp://host/x.tar", "file:///x.tar", "hdfs://host/x.tar"])
def test_other_addresses_are_not_opened(pattern: str) -> None:
    """A source reads http(s), s3 and gs, nothing else that looks like an address."""
    with pytest.raises(DataError, match="no shell command is ever run"):
        locate(pattern)


def test_secrets_of_addresses_are_not_told() -> None:
    """An error names the address without user, password and signature."""
    with pytest.raises(DataError) as told:
        locate("ftp://me:secret1@host/x.tar?X-Amz-Signature=secret2")
    assert "secret" not in str(told.value)


def listed(folder: Path, **sizes: int) -> None:
    """A dataset.json that lists `<name>.tar` with these sizes."""
    shards = [{"file": f"{name}.tar", "bytes": size, "samples": 1} for name, size in sizes.items()]
    (folder / "dataset.json").write_text(json.dumps({"splits": {"train": {"shards": shards}}}))


def test_listed_shards_are_complete(tmp_path: Path) -> None:
    """Shards as listed are accepted; listed ones that the pattern does not mean may be missing."""
    paths = make(tmp_path, "t0.tar", "t1.tar")
    listed(tmp_path, t0=1, t1=1, v0=1)
    assert find_shards(f"{tmp_path}/t*.tar") == paths


def test_listed_shard_is_missing(tmp_path: Path) -> None:
    """A wildcard that finds fewer shards than are listed is an error."""
    make(tmp_path, "t0.tar")
    listed(tmp_path, t0=1, t1=1)
    with pytest.raises(DataError, match=r"t1\.tar is missing: dataset\.json"):
        find_shards(f"{tmp_path}/t*.tar")
    assert len(find_shards(f"{tmp_path}/t0.tar")) == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"splits": {"train": {"shards": [{"file": "x"}]}}}'])
def test_broken_list(tmp_path: Path, text: str) -> None:
    """A dataset.json that cannot be read is named."""
    make(tmp_path, "t0.tar")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        find_shards(f"{tmp_path}/t*.tar")


def test_a_falling_range_stands_for_nothing(tmp_path: Path) -> None:
    """It is refused, wherever it stands."""
    make(tmp_path, "t-0.tar", "t-1.tar")
    with pytest.raises(DataError, match=r"\{1\.\.0\} falls"):
        find_shards(f"{tmp_path}/{{t,u}}-{{1..0}}.tar")


@pytest.mark.timeout(20)
def test_a_pattern_that_stands_for_too_many_files_is_refused() -> None:
    """At once, whatever it would take to spell them out."""
    with pytest.raises(DataError, match="more than 1000000 files"):
        find_shards("{0..9999999999}.tar")


def where(pattern: str, split: str = "") -> list[tuple[str, int | None]]:
    """Where the shards of a pattern are, and how many samples a list tells of each."""
    return [(shard.where, shard.listed.samples) for shard in locate(pattern, split).shards]


def test_shards_of_a_list(tmp_path: Path) -> None:
    """A list may be named instead of a pattern: the shards of one split, in its order, beside it."""
    make(tmp_path, "b.tar", "a.tar", "v.tar")
    timm = {
        "splits": {
            "train": {"filenames": ["b.tar", "a.tar"], "shard_lengths": [3, 2]},
            "val": {"filenames": ["v.tar"], "shard_lengths": [1]},
        }
    }
    (tmp_path / "_info.json").write_text(json.dumps(timm))
    assert where(f"{tmp_path}/_info.json", "train") == [(f"{tmp_path}/b.tar", 3), (f"{tmp_path}/a.tar", 2)]
    assert where(f"{tmp_path}/_info.json", "val") == [(f"{tmp_path}/v.tar", 1)]
    with pytest.raises(DataError, match="has the splits train, val: set `split`"):
        locate(f"{tmp_path}/_info.json")


def test_a_folder_with_a_list_is_its_list(tmp_path: Path) -> None:
    """As other commands take it; a folder without one is answered with a pattern."""
    make(tmp_path, "a.tar")
    with pytest.raises(DataError, match=r"has no list of shards .*\*\.tar"):
        locate(str(tmp_path))
    listed(tmp_path, a=1)
    assert where(str(tmp_path)) == where(str(tmp_path), "train") == [(f"{tmp_path}/a.tar", 1)]


def test_what_a_list_does_not_name_is_noted(tmp_path: Path) -> None:
    """A shard that a wildcard finds beside those of a list may be left over from other data."""
    make(tmp_path, "t0.tar", "t1.tar", "v0.tar")
    listed(tmp_path, t0=1)
    (note,) = locate(f"{tmp_path}/t*.tar").notes
    assert f"{tmp_path}/t1.tar is read, though the list of shards beside it does not name it" in note
    assert locate(f"{tmp_path}/t0.tar").notes == locate(f"{tmp_path}/v*.tar").notes == ()


def test_counts_come_from_the_list_beside(tmp_path: Path) -> None:
    """Of a pattern, too, where the list knows its files."""
    make(tmp_path, "a.tar", "b.tar")
    (tmp_path / "sizes.json").write_text('{"a.tar": 5, "b.tar": 6, "c.tar": 7}')
    assert where(f"{tmp_path}/[ab].tar") == [(f"{tmp_path}/a.tar", 5), (f"{tmp_path}/b.tar", 6)]
    with pytest.raises(DataError, match=r"c\.tar is missing: sizes\.json"):
        locate(f"{tmp_path}/*.tar")


def test_a_list_may_lead_elsewhere(tmp_path: Path) -> None:
    """A wids list names addresses."""
    make(tmp_path, "a.tar")
    shards = [{"url": "a.tar", "nsamples": 1}, {"url": "s3://bucket/b.tar", "nsamples": 2}]
    (tmp_path / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
    assert where(f"{tmp_path}/index.json") == [(f"{tmp_path}/a.tar", 1), ("s3://bucket/b.tar", 2)]


def test_a_list_names_what_is_missing(tmp_path: Path) -> None:
    """Shards that are not there, or of another size; and a list that is not there itself."""
    make(tmp_path, "a.tar")
    listed(tmp_path, a=1, b=1)
    with pytest.raises(DataError, match=r"b\.tar is missing: .*dataset\.json lists it"):
        locate(f"{tmp_path}/dataset.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read as a list of shards"):
        locate(f"{tmp_path}/none.json")


def test_a_split_is_of_a_list(tmp_path: Path) -> None:
    """Beside a pattern it would do nothing, so it is refused."""
    make(tmp_path, "a.tar")
    with pytest.raises(DataError, match="chooses from a list of shards"):
        locate(f"{tmp_path}/*.tar", "train")


def test_crop_and_classes_of_the_list(tmp_path: Path) -> None:
    """What the list tells of the images goes along."""
    make(tmp_path, "a.tar")
    card = {"crop": "adm", "classes": ["x", "y"], "splits": {"train": {"shards": [{"file": "a.tar", "bytes": 1}]}}}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    for pattern in (f"{tmp_path}/*.tar", f"{tmp_path}/dataset.json"):
        assert (locate(pattern).crop, locate(pattern).classes) == ("adm", 2)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".tar", "a\0b.tar", "{a,b}" * 2000 + ".tar", "{0.." + "9" * 5000 + "}.tar", "x" * 300 + ".json"]
)
def test_names_that_nothing_can_have(tmp_path: Path, name: str) -> None:
    """One error each, of few words."""
    with pytest.raises(DataError) as told:
        locate(f"{tmp_path}/{name}")
    assert len(str(told.value)) < 1500
