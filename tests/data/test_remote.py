"""Files at an address: what is taken, what is refused, and what is said. The servers are real, and most misbehave."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest

from cdmkit.data.remote import NotThere, Patience, download, is_remote, read_text, shown
from cdmkit.errors import CdmkitError, DataError, SetupError
from cdmkit.launching.devices import free_port

BODY = bytes(range(256)) * 4097
"""A bit more than a MiB."""

QUICK = Patience(attempts=4, wait=0.001, timeout=0.3)


@attrs.define
class Server:
    """What tests see of a server: where it is, and how often each path was asked for."""

    address: str
    asked: Counter[str]
    released: threading.Event
    paths: list[str]
    headers: list[dict[str, str]]
    connections: Counter[str]
    """Those `opened` and those `closed`."""


class Handler(BaseHTTPRequestHandler):
    """Answers as the path says."""

    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/").partition("/")[0]
        self.state.asked[name] += 1
        self.state.paths.append(self.path)
        self.state.headers.append(dict(self.headers))
        answer: Callable[[], None] = getattr(self, f"answer_{name}", self.answer_good)
        answer()

    def setup(self) -> None:
        super().setup()
        self.state.connections["opened"] += 1

    def finish(self) -> None:
        super().finish()
        self.state.connections["closed"] += 1

    def send(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self) -> None:
        self.send(200, BODY)

    def answer_json(self) -> None:
        self.send(200, '{"größe": 64}'.encode())

    def answer_missing(self) -> None:
        self.send(404, b"no such file")

    def answer_refused(self) -> None:
        self.send(403)

    def answer_busy(self) -> None:
        """Twice, then good."""
        self.send(*(200, BODY) if self.state.asked["busy"] > 2 else (503, b"busy"))

    def answer_broken(self) -> None:
        self.send(500)

    def answer_wrong(self) -> None:
        self.send(400)

    def answer_short(self) -> None:
        self.close_connection = True
        self.send(200, BODY[:1000], length=len(BODY))

    def answer_once_short(self) -> None:
        self.answer_short() if self.state.asked["once_short"] == 1 else self.answer_good()

    def answer_stalled(self) -> None:
        self.close_connection = True
        self.send(200, BODY[:1000], length=len(BODY))
        self.state.released.wait(20)

    def answer_slow(self) -> None:
        """The first time half, and the rest once it is released."""
        first = self.state.asked["slow"] == 1
        self.send(200, BODY[: len(BODY) // 2], length=len(BODY))
        if first:
            self.state.released.wait(20)
        self.wfile.write(BODY[len(BODY) // 2 :])

    def answer_moved(self) -> None:
        self.send(302, Location="/good?X-Amz-Signature=s3cret")

    def answer_circle(self) -> None:
        self.send(302, Location="/circle")

    def answer_elsewhere(self) -> None:
        self.send(302, Location="file:///etc/passwd")

    def answer_endless(self) -> None:
        """Neither a length nor an end."""
        self.unmeasured()
        try:
            while not self.state.released.is_set():
                self.wfile.write(BODY)
        except OSError:  # the reader has gone
            pass

    def answer_unmeasured(self) -> None:
        self.unmeasured()
        self.wfile.write(BODY)

    def answer_packed(self) -> None:
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        self.send(200, b"packed" if packed else BODY)

    def unmeasured(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: readers that go away are meant to."""


class Quiet(ThreadingHTTPServer):
    """A server that does not mind readers that go away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server for one test."""
    state = Server("", Counter(), threading.Event(), [], [], Counter())
    with Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state})) as running:
        state.address = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            running.shutdown()
            thread.join()


@pytest.mark.parametrize("text", ["http://h/a.tar", "https://h/a.tar?b=c", "s3://b/k.tar", "gs://b/k.tar"])
def test_addresses(text: str) -> None:
    """Four schemes are read."""
    assert is_remote(text)


@pytest.mark.parametrize(
    "text", ["a.tar", "/a/http://b", "file:///a.tar", "ftp://h/a.tar", "pipe:curl http://h/a.tar", "memory://a", "s3:/b"]
)
def test_other_texts_are_no_addresses(text: str, tmp_path: Path) -> None:
    """Paths, other schemes and commands are not, and nothing opens them."""
    assert not is_remote(text)
    with pytest.raises(DataError, match="no address of http, https, s3 or gs"):
        download(text, tmp_path / "file")


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    """With one question to the server, and its length as the server tells it."""
    assert download(f"{server.address}/good", tmp_path / "file", patience=QUICK) == len(BODY)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked == {"good": 1}


@pytest.mark.parametrize("name", ["busy", "once_short"])
def test_passing_trouble_is_waited_out(server: Server, tmp_path: Path, name: str) -> None:
    """A busy server and a cut connection are asked again, and nothing of the cut download is left in the file."""
    download(f"{server.address}/{name}", tmp_path / "file", patience=QUICK)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "words"),
    [("broken", "the server answers 500"), ("short", "1000|not enough data|payload"), ("stalled", "nothing came for 0.3 s")],
)
def test_lasting_trouble_is_told(server: Server, tmp_path: Path, name: str, words: str) -> None:
    """After as many attempts as are allowed: what was found, where, and what to do."""
    with pytest.raises(DataError, match=rf"(?i)/{name} cannot be downloaded, after 2 attempts: .*({words}).*Check the address") as error:
        download(f"{server.address}/{name}", tmp_path / "file", patience=attrs.evolve(QUICK, attempts=2))
    assert type(error.value) is DataError
    assert server.asked[name] == 2


def test_waits_double(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 2, 4 seconds, and none after the last attempt."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(DataError, match="after 4 attempts"):
        download(f"{server.address}/broken", tmp_path / "file")
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", r"is not there \(404\)"),
        ("refused", r"refuses access \(403\)"),
        ("wrong", "answers 400"),
        ("circle", "without end"),
        ("elsewhere", "file:///etc/passwd"),
    ],
)
def test_a_clear_no_is_taken_at_once(server: Server, tmp_path: Path, name: str, words: str) -> None:
    """Asking again would not help. No server can lead us to a local file."""
    with pytest.raises(DataError, match=words):
        download(f"{server.address}/{name}?sig=s3cret", tmp_path / "file", patience=attrs.evolve(QUICK, wait=60))
    assert server.asked[name] == (10 if name == "circle" else 1)
    assert not (tmp_path / "file").read_bytes()


def test_an_error_page_has_its_own_length(server: Server, tmp_path: Path) -> None:
    """Which is not taken for that of another version of the file."""
    with pytest.raises(NotThere):
        download(f"{server.address}/missing", tmp_path / "file", size=7, patience=QUICK)


@pytest.mark.parametrize("name", ["good", "missing", "broken"])
def test_connections_are_closed(server: Server, tmp_path: Path, name: str) -> None:
    """At once, and not when the last reference to an error goes."""
    kept = []
    try:
        download(f"{server.address}/{name}", tmp_path / "file", patience=QUICK)
    except DataError as error:
        kept.append(error)
    end = time.monotonic() + 5
    while server.connections["closed"] < server.connections["opened"] and time.monotonic() < end:
        time.sleep(0.005)
    assert server.connections["closed"] == server.connections["opened"] > 0


def test_nobody_listens(tmp_path: Path) -> None:
    """A refused connection is tried again, then told."""
    port = free_port()
    with pytest.raises(DataError, match="after 2 attempts: Cannot connect"):
        download(f"http://127.0.0.1:{port}/a", tmp_path / "file", patience=attrs.evolve(QUICK, attempts=2))


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """One that accepts connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(DataError, match=r"nothing came for 0\.2 s"):
        download(f"http://127.0.0.1:{mute.getsockname()[1]}/a", tmp_path / "file", patience=Patience(2, 0.001, 0.2))


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    """As hubs and stores lead to where the file lies."""
    download(f"{server.address}/moved", tmp_path / "file", patience=QUICK)
    assert (tmp_path / "file").read_bytes() == BODY


def test_another_size_than_expected(server: Server, tmp_path: Path) -> None:
    """Is told at the first block, once."""
    with pytest.raises(DataError, match=f"has {len(BODY)} bytes at the server, but should have 7"):
        download(f"{server.address}/good", tmp_path / "file", size=7, patience=QUICK)
    assert server.asked == {"good": 1}


def test_a_file_without_end_is_cut_off(server: Server, tmp_path: Path) -> None:
    """At the size it should have, or the most it may have."""
    for bounds in ({"size": 5000}, {"most": 5000}):
        with pytest.raises(DataError, match="has more than 5000 bytes"):
            download(f"{server.address}/endless", tmp_path / "file", patience=QUICK, **bounds)


def test_a_length_nobody_tells(server: Server, tmp_path: Path) -> None:
    """Is None, and held against what is expected if that is known: what ends too early is tried again."""
    url = f"{server.address}/unmeasured"
    assert download(url, tmp_path / "file", patience=QUICK) is None
    assert download(url, tmp_path / "file", size=len(BODY), patience=QUICK) == len(BODY)
    with pytest.raises(DataError, match=f"{len(BODY)} of {len(BODY) + 1} bytes came"):
        download(url, tmp_path / "file", size=len(BODY) + 1, patience=QUICK)


def test_nothing_is_packed_for_the_way(server: Server, tmp_path: Path) -> None:
    """The length told is that of the file itself."""
    assert download(f"{server.address}/packed", tmp_path / "file", patience=QUICK) == len(BODY)


@pytest.mark.parametrize(("given", "asked"), [("a%2Fb?s=%2B%2f~", "a%2Fb?s=%2B%2f~"), ("a b é", "a%20b%20%C3%A9"), ("50%", "50%25")])
def test_addresses_keep_their_letters(server: Server, tmp_path: Path, given: str, asked: str) -> None:
    """What is quoted stays so, since signatures are of the letters; what is not gets quoted."""
    download(f"{server.address}/{given}", tmp_path / "file", patience=QUICK)
    assert server.paths == [f"/{asked}"]


def test_no_secrets_of_the_home_folder_are_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ~/.netrc nor proxies of the environment are used."""
    (tmp_path / ".netrc").write_text("default login me password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    download(f"{server.address}/good", tmp_path / "file", patience=QUICK)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("name", ["missing", "refused", "wrong", "broken", "short", "good"])
def test_no_message_holds_a_secret(server: Server, tmp_path: Path, name: str) -> None:
    """Users, passwords and queries, known as secret or not."""
    url = f"{server.address.replace('://', '://me:s3cret@')}/{name}/a.tar?X-Amz-Signature=s3cret&sig=s3cret&any=s3cret"
    with pytest.raises(DataError, match=r"http://\*\*\*@127.*/a\.tar\?\*\*\*") as error:
        download(url, tmp_path / "file", size=3, patience=attrs.evolve(QUICK, attempts=2))
    assert "s3cret" not in str(error.value)


def test_shown_keeps_other_words() -> None:
    """Only the query is hidden, wherever the address stands in a text."""
    assert shown("500, url='https://u:p@h/a?b=c&d' and /a?b") == "500, url='https://***@h/a?***' and /a?b"


def test_a_file_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    """Is no fault of the server: OSError, at once."""
    with pytest.raises(OSError, match="No such file or directory"):
        download(f"{server.address}/good", tmp_path / "none" / "file", patience=QUICK)
    assert not server.asked


def test_text(server: Server) -> None:
    """A small file is its text, and one that is not there, or not to be seen, is None."""
    assert read_text(f"{server.address}/json", patience=QUICK) == '{"größe": 64}'
    assert read_text(f"{server.address}/missing", patience=QUICK) is None
    assert read_text(f"{server.address}/refused", patience=QUICK) is None


def test_text_that_is_none(server: Server) -> None:
    """Too long a file, another kind of file, and a server in trouble raise DataError."""
    for name, words in (("good", "no UTF-8"), ("broken", "after 4 attempts"), ("elsewhere", "no http")):
        with pytest.raises(DataError, match=words):
            read_text(f"{server.address}/{name}", patience=QUICK)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_text(f"{server.address}/endless", most=1000, patience=QUICK)


@pytest.mark.parametrize(
    ("gone", "url", "command"),
    [
        ("fsspec", "s3://b/k.tar", "pip install s3fs"),
        ("fsspec", "https://h/a.tar", r"pip install 'cdmkit\[remote\]'"),
        ("aiohttp", "http://h/a.tar", r"pip install 'cdmkit\[remote\]'"),
        ("s3fs", "s3://b/k.tar", "pip install s3fs"),
        ("gcsfs", "gs://b/k.tar", "pip install gcsfs"),
    ],
)
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone: str, url: str, command: str) -> None:
    """With the command that installs them."""
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(SetupError, match=f"{url}: .* not installed .*: {command}"):
        download(url, tmp_path / "file")


def test_nothing_of_it_is_imported_early() -> None:
    """Whoever reads local files needs no fsspec."""
    code = "import sys; import cdmkit.data.cache; sys.exit(bool({'fsspec', 'aiohttp'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    """s3 and gs go the same way through fsspec: its errors are ours, its lengths are checked."""
    from fsspec.spec import AbstractFileSystem

    class Store(AbstractFileSystem):  # type: ignore[misc]
        def get_file(self, rpath: str, lpath: str, callback: Any = None, **options: Any) -> None:
            if rpath.endswith("closed"):
                raise PermissionError("Forbidden")
            if rpath.endswith("shut"):
                raise OSError("Forbidden: https://h/o/k?alt=media\nno rights")
            if rpath.endswith("none"):
                raise FileNotFoundError(rpath)
            callback.set_size(4)
            Path(lpath).write_bytes(b"abc" if rpath.endswith("cut") else b"abcd")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Store)
    assert download(f"{scheme}://b/k", tmp_path / "file", patience=QUICK) == 4
    with pytest.raises(DataError, match="3 of 4 bytes came"):
        download(f"{scheme}://b/cut", tmp_path / "file", patience=QUICK)
    for name in ("closed", "shut", "none"):
        with pytest.raises(NotThere):
            download(f"{scheme}://b/{name}", tmp_path / "file", patience=QUICK)


def test_not_there_is_an_error_of_data() -> None:
    """With its exit code."""
    assert issubclass(NotThere, CdmkitError)
    assert NotThere.exit_code == 5
