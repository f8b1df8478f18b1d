"""Downloads from a server on this machine: tried again, verified, unpacked without trust."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import random
import threading
import zipfile
from dataclasses import replace

import pooch
import pytest

from src.core import signals
from src.core.data_utils import dataset_fingerprint
from src.core.datasets import download as module
from src.core.datasets.download import fetch, fetch_missing
from src.core.datasets.sources import Download, Source, source
from src.core.errors import Interrupted, UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, knows asked, and can break a connection after some bytes or misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []  # bytes after which the next answers end
        self.errors: list[int] = []
        self.asked: list[str] = []
        self.length = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        body = self.server.files.get(self.path[1:])
        self.server.asked.append(self.path)
        if self.server.errors:
            return self.send_error(self.server.errors.pop(0))
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.org/x")
            return self.end_headers()
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        rest = body
        if self.server.break_after:
            rest = rest[: self.server.break_after.pop(0)]
        self.wfile.write(rest)
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda s: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def archive(members: dict[str, bytes], **how) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED, **how) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data).hexdigest()


def test_a_broken_connection_is_tried_again(server, tmp_path):
    body = bytes(range(256)) * 5000
    server.files["log.dat"], server.break_after = body, [700_000, 100_000]
    fetch(Download(server.url("log.dat"), checksum=md5(body)), tmp_path)
    assert (tmp_path / "log.dat").read_bytes() == body and len(server.asked) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checksums.json", "log.dat"]


def test_four_broken_connections_are_the_end_and_leave_nothing(server, tmp_path):
    server.files["log.dat"], server.break_after = b"x" * 1000, [100] * module._ATTEMPTS
    with pytest.raises(UserError, match="cannot be fetched: .*100 bytes read.* a connection, or log.dat in"):
        fetch(Download(server.url("log.dat")), tmp_path)
    assert list(tmp_path.iterdir()) == []
    fetch(Download(server.url("log.dat")), tmp_path)
    assert (tmp_path / "log.dat").read_bytes() == b"x" * 1000


def test_server_errors_are_tried_again_but_not_missing_files(server, tmp_path):
    server.files["log.dat"], server.errors = b"x", [503, 503]
    fetch(Download(server.url("log.dat")), tmp_path)
    assert len(server.asked) == 3
    with pytest.raises(
        UserError, match="gone.dat cannot be fetched: .*404.* expected a connection, or gone.dat in"
    ):
        fetch(Download(server.url("gone.dat")), tmp_path)
    assert len(server.asked) == 4


def test_wrong_checksum(server, tmp_path):
    server.files["log.dat"] = b"other bytes"
    with pytest.raises(UserError, match="log.dat: MD5 hash .* the published checksum"):
        fetch(Download(server.url("log.dat"), checksum=md5(b"right bytes")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checksum_recorded_on_first_use(server, tmp_path):
    server.files["log.dat"] = b"first"
    fetch(Download(server.url("log.dat")), tmp_path)
    (tmp_path / "log.dat").unlink()
    server.files["log.dat"] = b"second"
    with pytest.raises(UserError, match="the checksum recorded in .*checksums.json"):
        fetch(Download(server.url("log.dat")), tmp_path)
    assert not (tmp_path / "log.dat").exists()


def test_unpacks_only_the_known_members(server, tmp_path):
    server.files["d.zip"] = archive({"d/ratings.dat": b"1::2\n", "d/extra.exe": b"x"})
    fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}, lines={"ratings.dat": 1}), tmp_path)
    assert (tmp_path / "ratings.dat").read_bytes() == b"1::2\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checksums.json", "ratings.dat"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil"])
def test_names_outside_the_folder_are_refused(name, server, tmp_path):
    server.files["d.zip"] = archive({"d/ratings.dat": b"1\n", name: b"x"})
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="has the member"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path / "in")
    assert not (tmp_path / "in" / "ratings.dat").exists() and not (tmp_path / "evil").exists()


def test_links_are_refused(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        link = zipfile.ZipInfo("d/ratings.dat")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    server.files["d.zip"] = buffer.getvalue()
    with pytest.raises(UserError, match="has the member 'd/ratings.dat'"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path)


@pytest.mark.parametrize("cut", [10, 200, -30])
def test_truncated_archive(cut, server, tmp_path):
    whole = archive({"d/ratings.dat": bytes(range(256)) * 40, "d/movies.dat": b"1::A"})
    server.files["d.zip"] = whole[:cut]
    with pytest.raises(UserError, match="d.zip.* cannot be unpacked"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path)
    assert list(tmp_path.iterdir()) == []  # neither kept nor recorded: the next run starts anew
    server.files["d.zip"] = whole
    fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path)


def test_damaged_bytes_inside_an_archive(server, tmp_path):
    rng = random.Random(0)
    content = rng.randbytes(20_000)
    damaged = bytearray(archive({"d/ratings.dat": content}))
    damaged[8_000:8_100] = bytes(100)
    server.files |= {"d.zip": bytes(damaged), "a.json.gz": damage(gzip.compress(content))}
    with pytest.raises(UserError, match="d.zip.* cannot be unpacked"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path)
    with pytest.raises(UserError, match="a.json.gz cannot be read"):
        fetch(Download(server.url("a.json.gz"), lines={"a.json.gz": 3}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def damage(data: bytes) -> bytes:
    return data[:5_000] + bytes(b ^ 255 for b in data[5_000:5_200]) + data[5_200:]


def test_archive_without_the_member(server, tmp_path):
    server.files["d.zip"] = archive({"other": b""})
    with pytest.raises(UserError, match="has no member d/ratings.dat"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}), tmp_path)


def test_size_limits(server, tmp_path):
    bomb = archive({"d/ratings.dat": bytes(10_000_000)})
    assert len(bomb) < 20_000
    server.files |= {"d.zip": bomb, "big.dat": bytes(50_000)}
    with pytest.raises(UserError, match="unpacks to more than 20000 bytes"):
        fetch(Download(server.url("d.zip"), {"d/ratings.dat": "ratings.dat"}, max_bytes=20_000), tmp_path)
    assert not (tmp_path / "ratings.dat").exists()
    with pytest.raises(UserError, match="big.dat has 50000 bytes"):
        fetch(Download(server.url("big.dat"), max_bytes=20_000), tmp_path)


def test_known_number_of_lines(server, tmp_path):
    server.files |= {"a.json.gz": gzip.compress(b"{}\n{}\n{}"), "b.dat": b"1\n2\n"}
    fetch(Download(server.url("a.json.gz"), lines={"a.json.gz": 3}), tmp_path)
    with pytest.raises(UserError, match="b.dat has 2 lines; expected 3, the known count"):
        fetch(Download(server.url("b.dat"), lines={"b.dat": 3}), tmp_path)
    assert not (tmp_path / "b.dat").exists()


def test_a_signal_stops_a_download(server, tmp_path, monkeypatch):
    server.files["log.dat"] = bytes(range(256)) * 20_000
    monkeypatch.setattr(signals, "_seen", [15])
    with pytest.raises(Interrupted):
        fetch(Download(server.url("log.dat")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_was_not_announced(server, tmp_path):
    server.files["log.dat"], server.length = bytes(50_000), False
    with pytest.raises(UserError, match="log.dat sends more than 20000 bytes"):
        fetch(Download(server.url("log.dat"), max_bytes=20_000), tmp_path)


def test_only_encrypted_addresses(server, tmp_path):
    with pytest.raises(UserError, match="http://example.org/x is not encrypted"):
        fetch(Download("http://example.org/x"), tmp_path)
    with pytest.raises(UserError, match="http://example.org/x is not encrypted"):
        fetch(Download(server.url("elsewhere")), tmp_path)


def test_fetch_missing_takes_what_is_not_there(server, tmp_path, dataset_config, monkeypatch, caplog):
    caplog.set_level("INFO")
    server.files |= {"ratings.dat": b"1::2::3::4\n", "movies.dat": b"2::A::x\n"}
    downloads = tuple(Download(server.url(name)) for name in server.files)
    monkeypatch.setattr(module, "source", lambda config: Source("MIT", "page", downloads))
    config = dataset_config("movietweetings", f"dataset.raw_dir={tmp_path / 'raw'}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "movies.dat").write_bytes(b"2::B::x\n")
    fetch_missing(config, tmp_path / "raw")
    assert (tmp_path / "raw" / "movies.dat").read_bytes() == b"2::B::x\n"
    assert (tmp_path / "raw" / "ratings.dat").read_bytes() == b"1::2::3::4\n"
    assert "terms: MIT" in caplog.text and len(server.asked) == 1
    fetch_missing(config, tmp_path / "raw")
    assert len(server.asked) == 1


def test_download_off_names_the_files(tmp_path, dataset_config):
    config = dataset_config("movielens_1m", f"dataset.raw_dir={tmp_path}", "dataset.download=false")
    with pytest.raises(UserError, match="ratings.dat is missing; expected the files ratings.dat, movies.dat"):
        dataset_fingerprint(config)


def test_offline_says_what_to_do(tmp_path, dataset_config, monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda s: None)
    unreachable = Source("MIT", "page", (Download("http://127.0.0.1:9/ratings.dat"),))
    monkeypatch.setattr(module, "source", lambda config: unreachable)
    with pytest.raises(
        UserError, match="a connection, or ratings.dat in .* change dataset.raw_dir or dataset.download"
    ):
        fetch_missing(dataset_config("movietweetings", f"dataset.raw_dir={tmp_path}"), tmp_path)


def test_every_source_is_encrypted_and_names_what_its_reader_wants(tmp_path, dataset_config):
    from src.core.datasets.readers import reader
    from src.core.paths import CONF

    known = 0
    for path in sorted((CONF / "dataset").glob("[!_]*.yaml")):
        config = replace(dataset_config(path.stem), raw_dir=str(tmp_path))
        origin = source(config)
        if origin is None:
            assert config.reader in ("demo", "csv", "ilora")
            continue
        known += 1
        assert origin.terms and all(d.url.startswith("https://") for d in origin.downloads)
        folder = tmp_path / path.stem
        folder.mkdir()
        for name in (name for d in origin.downloads for name in d.files):
            (folder / name).write_bytes(b"x")
        assert reader(config.reader).files(folder, config)
    assert known >= 15
