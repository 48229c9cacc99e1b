"""Remote shards on the local disk: named apart, brought once, verified, never half, and removed only where nobody reads them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from cdmkit.data import cache as module
from cdmkit.data.cache import Cache, cache_folder
from cdmkit.errors import DataError, SetupError
from tests.data.test_remote import BODY, QUICK, Server, server

__all__ = ["server"]

DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty one."""
    return Cache(tmp_path / "cache", patience=QUICK)


def names(cache: Cache) -> set[str]:
    """The endings of what lies in a cache: of its files, notes, locks and half downloads."""
    return {path.name[64:] for path in cache.folder.iterdir() if path.name != "in-use.lock"}


def fetching(url: str) -> str:
    """The code that fetches a URL and tells the path."""
    return f"print(cache.fetch({url!r}), flush=True)"


def evicting(url: str) -> str:
    """The code that fetches a URL, evicts all it can, and tells the bytes that are left."""
    return f"cache.fetch({url!r}); print(attrs.evolve(cache, limit=1).evict())"


@contextlib.contextmanager
def process(cache: Cache, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that does something with the cache. It is killed at the end of the block."""
    head = f"""
import attrs, pathlib, resource, sys
from cdmkit.data.cache import Cache
from cdmkit.data.remote import Patience
cache = Cache(pathlib.Path({str(cache.folder)!r}), patience=Patience(1, 0.1, 20))
"""
    with subprocess.Popen([sys.executable, "-c", head + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def wait_for_half(cache: Cache) -> Path:
    """The half download that appears in a cache."""
    while True:
        for path in cache.folder.glob("*.partial"):
            if path.stat().st_size:
                return path
        time.sleep(0.005)


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$CDMKIT_CACHE, else $XDG_CACHE_HOME if it is absolute, else the home folder's .cache."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    for given, home, folder in (
        ("/big", "/xdg", "/big/shards"),
        ("~/big", "/xdg", "/home/me/big/shards"),
        ("big", "", f"{tmp_path}/big/shards"),
        ("", "/xdg", "/xdg/cdmkit/shards"),
        ("", "xdg", "/home/me/.cache/cdmkit/shards"),
        ("", "", "/home/me/.cache/cdmkit/shards"),
    ):
        monkeypatch.setenv("CDMKIT_CACHE", given)
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert cache_folder() == Cache().folder == Path(folder)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder can be found, it has to be named."""
    monkeypatch.setenv("CDMKIT_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(SetupError, match="Set CDMKIT_CACHE"):
        cache_folder()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/train/000.tar", "000.tar"),
        ("s3://b/k/a%20b+c.tar", "a_b_c.tar"),
        ("https://h/a.tar?x=/y.tar#z/w.tar", "a.tar"),
        ("https://h/..", ".."),
        ("https://h/a/%2e%2e%2f%00", ".._"),
        ("https://h/größe 中.tar", "gr_e_.tar"),
        ("https://h/", ""),
        ("https://me:s3cret@h", ""),
        ("https://me:s3cret@h?sig=s3cret", ""),
        (f"https://h/{'x' * 300}.tar", "x" * 96 + ".tar"),
        ("http://[", ""),
    ],
)
def test_names_are_safe(cache: Cache, url: str, name: str) -> None:
    """A file name of plain letters, after the digest of the whole URL; no secret is in it, and nothing leads out of the folder."""
    path = cache.path(url)
    assert path.parent == cache.folder
    assert path.name == f"{hashlib.sha256(url.encode()).hexdigest()}-{name}"


def test_equal_names_do_not_collide(cache: Cache, server: Server) -> None:
    """Files of one name at two places are two files."""
    first, second = cache.fetch(f"{server.address}/good/000.tar"), cache.fetch(f"{server.address}/json/000.tar")
    assert first.read_bytes() == BODY
    assert second.read_text() == '{"größe": 64}'


def test_a_file_is_brought_once(cache: Cache, server: Server) -> None:
    """The second fetch asks nobody. Beside the file lie its note and its lock, and nothing else."""
    path = cache.fetch(f"{server.address}/good/a.tar")
    assert cache.fetch(f"{server.address}/good/a.tar", len(BODY), DIGEST.upper()) == path
    assert server.asked == {"good": 1}
    assert names(cache) == {"-a.tar", ".json", ".lock"}
    note = json.loads(path.with_name(f"{path.name[:64]}.json").read_text())
    assert note == {"url": f"{server.address}/good/a.tar", "size": len(BODY), "sha256": DIGEST}


def test_no_secret_is_written(cache: Cache, server: Server) -> None:
    """Neither into names nor into notes."""
    cache.fetch(f"{server.address.replace('://', '://me:s3cret@')}/good/a.tar?X-Amz-Signature=s3cret&any=s3cret")
    assert not [path for path in cache.folder.iterdir() if "s3cret" in path.name or b"s3cret" in path.read_bytes()]


def test_wrong_bytes(cache: Cache, server: Server) -> None:
    """A file of another digest is refused, and nothing of it is kept."""
    with pytest.raises(DataError, match=f"has the SHA-256 {DIGEST}, but should have 00"):
        cache.fetch(f"{server.address}/good", sha256="00" * 32)
    assert names(cache) == {".lock"}


@pytest.mark.parametrize("name", ["missing", "short", "stalled"])
def test_what_does_not_come_leaves_nothing(cache: Cache, server: Server, name: str) -> None:
    """Neither a file nor a note."""
    with pytest.raises(DataError, match=f"/{name}"):
        attrs.evolve(cache, patience=attrs.evolve(QUICK, attempts=2)).fetch(f"{server.address}/{name}")
    assert names(cache) == {".lock"}


def test_a_length_nobody_tells(cache: Cache, server: Server) -> None:
    """Is refused, for a cut file could not be told from a whole one, unless size or digest are known."""
    url = f"{server.address}/unmeasured"
    with pytest.raises(DataError, match="does not tell its length"):
        cache.fetch(url)
    assert cache.fetch(url, size=len(BODY)).read_bytes() == BODY
    assert cache.fetch(f"{url}?2", sha256=DIGEST).read_bytes() == BODY


@pytest.mark.parametrize("damage", ["short", "no note", "bad note", "odd note"])
def test_a_damaged_entry_is_brought_again(cache: Cache, server: Server, damage: str) -> None:
    """What does not fit its note is not used."""
    path = cache.fetch(f"{server.address}/good")
    note = path.with_name(f"{path.name[:64]}.json")
    if damage == "short":
        path.write_bytes(BODY[:10])
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text("{" if damage == "bad note" else "[]")
    assert cache.fetch(f"{server.address}/good").read_bytes() == BODY
    assert server.asked == {"good": 2}


def test_another_version_is_brought(cache: Cache, server: Server) -> None:
    """A file that is not as asked for is brought again; the one there stays as long as nothing better comes."""
    url = f"{server.address}/good"
    path = cache.fetch(url)
    for wanted in ({"size": 3}, {"sha256": "00" * 32}):
        with pytest.raises(DataError, match="another version"):
            cache.fetch(url, **wanted)
    assert server.asked == {"good": 3}
    assert cache.fetch(url) == path
    assert server.asked == {"good": 3}


def test_processes_and_threads_share_one_download(cache: Cache, server: Server) -> None:
    """Whoever comes while a file is downloaded waits, and uses it."""
    url = f"{server.address}/slow"
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(cache, fetching(url))) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            paths = [pool.submit(attrs.evolve(cache, patience=attrs.evolve(QUICK, timeout=20)).fetch, url) for _ in range(3)]
            wait_for_half(cache)
            time.sleep(0.2)  # so that others wait
            server.released.set()
            told = {Path(child.communicate()[0].strip()) for child in children} | {path.result() for path in paths}
    assert told == {cache.path(url)}
    assert cache.path(url).read_bytes() == BODY
    assert server.asked == {"slow": 1}


def test_a_killed_download_is_never_read(cache: Cache, server: Server) -> None:
    """Its half stays where nobody takes it for a file; the next one brings the whole, and clears up."""
    url = f"{server.address}/slow"
    with process(cache, fetching(url)) as child:
        half = wait_for_half(cache)
        child.kill()
    assert half.exists()
    assert not cache.path(url).exists()
    assert cache.fetch(url).read_bytes() == BODY
    assert names(cache) == {"-slow", ".json", ".lock"}


def test_a_full_disk(cache: Cache, server: Server) -> None:
    """Names the folder and what to set, and leaves nothing."""
    code = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    cache.fetch({f"{server.address}/good?sig=s3cret"!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    with process(cache, code) as child:
        told = child.communicate()[0]
    assert told.startswith(f"SetupError {cache.folder} cannot be used to keep {server.address}/good?***: File too large. Make room there")
    assert "set CDMKIT_CACHE" in told
    assert server.asked == {"good": 1}
    assert names(cache) == {".lock"}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path, place: str) -> None:
    """Is named before anything is downloaded."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=rf"{tmp_path}/{place} cannot be used .* set CDMKIT_CACHE"):
        Cache(tmp_path / place).fetch(f"{server.address}/good")
    assert not server.asked


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_can_only_be_read(cache: Cache, server: Server) -> None:
    """Gives what is in it, and is named where something is missing."""
    path = cache.fetch(f"{server.address}/good")
    cache.folder.chmod(0o500)
    try:
        assert cache.fetch(f"{server.address}/good") == path
        with pytest.raises(SetupError, match="Permission denied"):
            cache.fetch(f"{server.address}/json")
    finally:
        cache.folder.chmod(0o700)


def filled(cache: Cache, server: Server, count: int = 3) -> list[Path]:
    """Files of one size, used in their order."""
    paths = [cache.fetch(f"{server.address}/good/{number}") for number in range(count)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path.with_name(f"{path.name[:64]}.json"), (1e9 - age, 1e9 - age))
    return paths


def test_without_a_limit_all_stays(cache: Cache, server: Server) -> None:
    """And an empty cache is no error."""
    assert cache.evict() == 0
    paths = filled(cache, server)
    assert cache.evict() == 3 * len(BODY)
    assert all(path.exists() for path in paths)


def test_what_was_used_longest_ago_goes(cache: Cache, server: Server) -> None:
    """With its note, until the rest is within the limit. Fetching is using."""
    paths = filled(cache, server)
    cache.fetch(f"{server.address}/good/0")
    assert attrs.evolve(cache, limit=2 * len(BODY)).evict() == 2 * len(BODY)
    assert [path.exists() for path in paths] == [True, False, True]
    assert not paths[1].with_name(f"{paths[1].name[:64]}.json").exists()
    with process(cache, fetching(f"{server.address}/good/1")) as child:
        assert child.communicate(timeout=10)[0].strip() == str(paths[1])
    with process(cache, evicting(f"{server.address}/json")) as child:  # what went is no longer in use here
        assert int(child.communicate()[0]) == 2 * len(BODY)


def test_what_is_kept_stays(cache: Cache, server: Server) -> None:
    """Even if the rest is then above the limit."""
    paths = filled(cache, server)
    assert attrs.evolve(cache, limit=1).evict(keep=paths[:2]) == 2 * len(BODY)
    assert [path.exists() for path in paths] == [True, True, False]


def test_what_another_process_reads_stays(cache: Cache, server: Server) -> None:
    """For as long as it lives, and not longer: a killed one reads no more."""
    small = attrs.evolve(cache, limit=1)
    url = f"{server.address}/good/0"
    paths = filled(cache, server)
    with process(cache, f"{fetching(url)}; sys.stdin.read()") as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == str(paths[0])
        assert small.evict() == len(BODY)
        assert [path.exists() for path in paths] == [True, False, False]
        assert small.evict() == len(BODY)
    assert small.evict() == 0


def test_others_keep_what_this_process_reads(cache: Cache, server: Server) -> None:
    """An evicting process leaves files alone that were fetched here, and still after an eviction here has kept them."""
    paths = filled(cache, server)
    cache.folder.joinpath(f"{paths[0].name[:64]}.{'0' * 32}.partial").touch()  # a second reason to look at the file
    attrs.evolve(cache, limit=1).evict(keep=paths[:2])
    with process(cache, evicting(f"{server.address}/json")) as child:
        assert int(child.communicate()[0]) == 2 * len(BODY)
    assert [path.exists() for path in paths] == [True, True, False]


def test_half_downloads_go(cache: Cache, server: Server) -> None:
    """Those of killed processes, not those that are under way. What else lies there is left alone."""
    url = f"{server.address}/slow"
    with process(cache, fetching(url)) as child:
        half = wait_for_half(cache)
        cache.evict()
        assert half.exists()
        child.kill()
    others = [cache.folder / name for name in ("mine.partial", "dead.tar", f"{'0' * 64}-a.partial", f".{'0' * 64}.json.partial")]
    for path in others:
        path.touch()
    cache.evict()
    assert not half.exists()
    assert all(path.exists() for path in others)


def test_a_thread_downloads_while_another_evicts(cache: Cache, server: Server) -> None:
    """Its half is left alone, and others know of its use afterwards."""
    small = attrs.evolve(cache, limit=1, patience=attrs.evolve(QUICK, timeout=20))
    url = f"{server.address}/slow"
    thread = threading.Thread(target=small.fetch, args=(url,))
    thread.start()
    half = wait_for_half(cache)
    small.evict()
    assert half.exists()
    server.released.set()
    thread.join()
    with process(cache, evicting(f"{server.address}/json")) as child:
        assert int(child.communicate()[0]) == len(BODY)
    assert cache.path(url).read_bytes() == BODY


def test_an_eviction_between_looking_and_downloading(cache: Cache, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread: the file that then comes is in use here, as any other."""
    url = f"{server.address}/good"
    cache.fetch(url).write_bytes(b"damaged")
    fits = module._fits

    def evict_and_look(*args: Any) -> bool:
        monkeypatch.setattr(module, "_fits", fits)
        attrs.evolve(cache, limit=1).evict()
        return fits(*args)

    monkeypatch.setattr(module, "_fits", evict_and_look)
    cache.fetch(url)
    with process(cache, evicting(f"{server.address}/json")) as child:
        assert int(child.communicate()[0]) == len(BODY)


def test_a_file_system_without_locks_of_bytes_removes_nothing(cache: Cache, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching works there; what cannot be known to be unused stays."""

    def refuse(path: Path, kind: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(module, "_lock_use", refuse)
    path = cache.fetch(f"{server.address}/good")
    assert attrs.evolve(cache, limit=1).evict() == len(BODY)
    assert path.exists()
