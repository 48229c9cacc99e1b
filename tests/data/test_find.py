"""Which files a `shards` pattern means, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdmkit.data.find import expand_braces, find_shards
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
    with pytest.raises(DataError, match=r"no training data: .*/none, which does not exist; set CDMKIT_DATA .* --set data\.source\.shards="):
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


def test_listed_shard_is_cut(tmp_path: Path) -> None:
    """A shard of another size than listed is an error."""
    make(tmp_path, "t0.tar")
    listed(tmp_path, t0=7)
    with pytest.raises(DataError, match=r"t0\.tar has 1 bytes, but dataset\.json beside it says 7"):
        find_shards(f"{tmp_path}/t*.tar")


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
