from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import urllib.request

import pytest

from medkd.data import download as module
from medkd.data.download import available, download
from medkd.errors import UserError


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


GOOD = tar({"Task04_Hippocampus/dataset.json": b"{}", "Task04_Hippocampus/imagesTr/a.nii.gz": b"x" * 50_000})


class Answer(io.BytesIO):
    def __init__(self, data, status=200, length=None):
        super().__init__(data)
        self.status = status
        self.headers = {"Content-Length": str(len(data) if length is None else length)}


@pytest.fixture
def server(monkeypatch):
    """Replace the network; ``server.answer`` makes the answer to a request."""

    class Server:
        requests: list[urllib.request.Request] = []
        data = GOOD

        def answer(self, request):
            return Answer(self.data)

    server = Server()
    server.requests = []

    def urlopen(request, timeout):
        server.requests.append(request)
        return server.answer(request)

    def use(data):
        server.data = data
        table = {"msd/Task04_Hippocampus": ("https://example.org/t.tar", hashlib.md5(data).hexdigest())}
        monkeypatch.setattr(module, "available", lambda: table)

    server.use = use
    use(GOOD)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return server


@pytest.mark.parametrize("name", ["msd/Task04_Hippocampus", "MSD/task04_hippocampus", "Task04_Hippocampus"])
def test_fetches_checks_and_unpacks_once(server, tmp_path, name):
    seen = []
    folder = download(name, tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "data" / "Task04_Hippocampus"
    assert (folder / "imagesTr" / "a.nii.gz").stat().st_size == 50_000
    assert [path.name for path in folder.parent.iterdir()] == ["Task04_Hippocampus"]
    assert seen[-1] == (len(GOOD), len(GOOD))
    assert download(name, tmp_path / "data") == folder
    assert len(server.requests) == 1


def test_goes_on_after_a_broken_transfer(server, tmp_path):
    server.answer = lambda request: Answer(GOOD[:20_000], length=len(GOOD))
    with pytest.raises(UserError, match=f"after 20000 of {len(GOOD)} bytes: run it again"):
        download("msd/Task04_Hippocampus", tmp_path)

    def rest(request):
        assert request.get_header("Range") == "bytes=20000-"
        return Answer(GOOD[20_000:], status=206)

    server.answer = rest
    assert (download("msd/Task04_Hippocampus", tmp_path) / "dataset.json").is_file()


def test_begins_anew_where_the_server_cannot_resume(server, tmp_path):
    (tmp_path / "Task04_Hippocampus.tar.part").write_bytes(b"old")
    assert (download("msd/Task04_Hippocampus", tmp_path) / "dataset.json").is_file()


def test_against_a_real_server(tmp_path, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if start >= len(GOOD):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(GOOD) - start))
            self.end_headers()
            self.wfile.write(GOOD[start:])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        table = {"msd/X": (f"http://127.0.0.1:{running.server_port}/X.tar", hashlib.md5(GOOD).hexdigest())}
        monkeypatch.setattr(module, "available", lambda: table)
        for case, held in enumerate((0, 1000, len(GOOD))):
            into = tmp_path / str(case)
            into.mkdir()
            (into / "X.tar.part").write_bytes(GOOD[:held])
            assert (download("msd/X", into) / "dataset.json").is_file()
        running.shutdown()


def test_offline_is_told(server, tmp_path):
    def answer(request):
        raise urllib.error.URLError("Name or service not known")

    server.answer = answer
    with pytest.raises(UserError, match=r"cannot be reached \(Name or service not known\): check the connection"):
        download("msd/Task04_Hippocampus", tmp_path)


def test_refusal_is_told(server, tmp_path):
    def answer(request):
        raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", None, None)

    server.answer = answer
    with pytest.raises(UserError, match="answers 403 Forbidden"):
        download("msd/Task04_Hippocampus", tmp_path)


def test_damage_is_told_and_nothing_unpacked(server, tmp_path):
    server.data = GOOD[:-1] + b"!"
    with pytest.raises(UserError, match="damaged"):
        download("msd/Task04_Hippocampus", tmp_path)
    assert not (tmp_path / "Task04_Hippocampus").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "Task04_Hippocampus/../../evil.txt"])
def test_nothing_lands_outside(server, tmp_path, name):
    server.use(tar({"Task04_Hippocampus/dataset.json": b"{}", name: b"evil"}))
    with pytest.raises(UserError, match="cannot be unpacked"):
        download("msd/Task04_Hippocampus", tmp_path / "in")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "in" / "Task04_Hippocampus").exists()


def test_other_archives_and_folders_are_told(server, tmp_path):
    server.use(tar({"readme.txt": b"hello"}))
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        download("msd/Task04_Hippocampus", tmp_path)
    (tmp_path / "other" / "Task04_Hippocampus").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no dataset\.json: remove it"):
        download("msd/Task04_Hippocampus", tmp_path / "other")


def test_unknown_name_gets_the_nearest(server, tmp_path):
    with pytest.raises(UserError, match="did you mean 'msd/Task04_Hippocampus'"):
        download("msd/Task04_Hipocampus", tmp_path)
    assert not server.requests


def test_monai_knows_the_ten_tasks():
    table = available()
    assert len(table) == 10
    assert all(url.startswith("https://") and len(md5) == 32 for url, md5 in table.values())
    assert "msd/Task09_Spleen" in table
