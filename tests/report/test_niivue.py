from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.error
import urllib.request

import pytest

from medkd.errors import UserError
from medkd.report import niivue

SOURCE = b"globalThis.niivue = {};"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDKD_NIIVUE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "medkd"


@pytest.fixture
def package(monkeypatch) -> bytes:
    """A package in the place of the published one, with its checksums."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        member = tarfile.TarInfo(niivue.MEMBER)
        member.size = len(SOURCE)
        archive.addfile(member, io.BytesIO(SOURCE))
    body = held.getvalue()
    monkeypatch.setattr(niivue, "INTEGRITY", base64.b64encode(hashlib.sha512(body).digest()).decode())
    monkeypatch.setattr(niivue, "DIGEST", hashlib.sha256(SOURCE).hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(body))
    return body


def test_fetched_once_checked_and_found(cache, package, monkeypatch) -> None:
    assert niivue.find_niivue() is None
    path = niivue.fetch_niivue()
    assert path.parent == cache
    assert niivue.find_niivue() == SOURCE.decode()
    monkeypatch.setattr(urllib.request, "urlopen", None)  # a second call would fail
    assert niivue.fetch_niivue() == path
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_other_bytes_are_refused(cache, package, monkeypatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(package + b"x"))
    with pytest.raises(UserError, match="not NiiVue"):
        niivue.fetch_niivue()
    assert not cache.exists()


def test_a_changed_file_in_the_cache_is_not_used(cache, package) -> None:
    niivue.fetch_niivue().write_bytes(b"alert(1)")
    assert niivue.find_niivue() is None


def test_without_a_connection_the_way_out_is_told(cache, monkeypatch) -> None:
    def fail(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(UserError, match=r"no route.*MEDKD_NIIVUE"):
        niivue.fetch_niivue()
    with pytest.raises(UserError, match="https only"):
        niivue.fetch_niivue("file:///etc/passwd")


def test_a_file_can_be_named_or_niivue_left_out(tmp_path, monkeypatch) -> None:
    file = tmp_path / "own.js"
    file.write_bytes(SOURCE)
    monkeypatch.setenv("MEDKD_NIIVUE", str(file))
    assert niivue.find_niivue() == SOURCE.decode()
    monkeypatch.setenv("MEDKD_NIIVUE", "")
    assert niivue.find_niivue() is None
    monkeypatch.setenv("MEDKD_NIIVUE", str(tmp_path / "absent.js"))
    with pytest.raises(UserError, match=r"absent\.js"):
        niivue.find_niivue()
