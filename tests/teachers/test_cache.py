"""Stored teacher answers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.teachers.cache import DamagedTargetError, TargetStore, content_digest
from medkd.teachers.encodings import Encoding, decode, encode


def soft(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([1, 1, 1], (9, 8, 7)).transpose(3, 0, 1, 2).astype(np.float32)


@pytest.mark.parametrize("ram_mb", [0.0, 100.0])
def test_comes_back_as_float16(tmp_path: Path, ram_mb: float) -> None:
    TargetStore(tmp_path).write("a", soft())
    store = TargetStore(tmp_path, ram_mb=ram_mb)
    assert store.has("a")
    stored = store.read("a")
    np.testing.assert_array_equal(stored[...], soft().astype(np.float16))
    np.testing.assert_array_equal(stored[:, 2:4, :, 1:], soft().astype(np.float16)[:, 2:4, :, 1:])


def test_positions_are_where_a_class_wins(tmp_path: Path) -> None:
    store = TargetStore(tmp_path)
    store.write("a", soft())
    owner = soft().argmax(0)
    positions = TargetStore(tmp_path).positions("a")
    assert set(positions) == {1, 2}
    for value, where in positions.items():
        assert all(owner[tuple(p)] == value for p in where)
        assert len(where) == (owner == value).sum()


def test_positions_of_many_classes_take_few_bytes(tmp_path: Path) -> None:
    owner = np.arange(48**3).reshape(48, 48, 48) // 1024 % 101
    hot = (owner == np.arange(101).reshape(-1, 1, 1, 1)).astype(np.float32)
    TargetStore(tmp_path, encoding=Encoding("topk")).write("a", hot)
    positions = TargetStore(tmp_path).positions("a")
    assert set(positions) == set(range(1, 101))
    for value, where in positions.items():
        assert len(np.unique(where, axis=0)) == 198
        assert all(owner[tuple(p)] == value for p in where)
    assert (tmp_path / "a.target.npz").stat().st_size < 100 * 198 * 4


def test_a_case_without_positions_is_not_whole(tmp_path: Path) -> None:
    store = TargetStore(tmp_path)
    store.write("a", soft())
    (tmp_path / "a.target.npz").unlink()
    assert not store.has("a")
    assert not store.has("b")


def test_a_write_that_breaks_off_leaves_the_case_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(stream: object, **arrays: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    store = TargetStore(tmp_path)
    with pytest.raises(UserError, match=r"No space left.*free disk space"):
        store.write("a", soft())
    assert not store.has("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "a.target.b2nd", "index.json"]


def test_damage_is_told(tmp_path: Path) -> None:
    TargetStore(tmp_path).write("a", soft())
    for name in ("a.target.npz", "a.target.b2nd"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:50])
    store = TargetStore(tmp_path)
    with pytest.raises(UserError, match=r"target of case a in .* is damaged"):
        store.read("a")
    with pytest.raises(UserError, match=r"target of case a in .* is damaged"):
        store.positions("a")
    with pytest.raises(UserError, match="missing"):
        store.read("b")


def test_a_teacher_that_sees_background_alone(tmp_path: Path) -> None:
    store = TargetStore(tmp_path)
    store.write("a", np.stack([np.ones((4, 4)), np.zeros((4, 4))]))
    assert store.has("a")
    assert store.positions("a") == {}


CODES = [Encoding("full16"), Encoding("uint8"), Encoding("topk", 2)]


@pytest.mark.parametrize("ram_mb", [0.0, 100.0], ids=["lazy", "held"])
@pytest.mark.parametrize("encoding", CODES, ids=str)
def test_every_encoding_is_read_by_slices(tmp_path: Path, encoding: Encoding, ram_mb: float) -> None:
    TargetStore(tmp_path, encoding=encoding).write("a", soft())
    stored = TargetStore(tmp_path, ram_mb=ram_mb).read("a")
    whole = decode(encode(soft(), encoding), encoding, 3)
    assert stored.shape == whole.shape
    assert stored.dtype == whole.dtype
    inner = (slice(None), slice(2, 4), slice(None), slice(1, None))
    for index in (..., inner, 1, (slice(1, 3), slice(0, 3)), (slice(None), slice(0, 0))):
        np.testing.assert_allclose(stored[index], whole[index], atol=1e-6)


def test_a_folder_keeps_its_encoding(tmp_path: Path) -> None:
    made = content_digest({"data": "d", "teacher": "t"}, 1.5)
    TargetStore(tmp_path, encoding=Encoding("topk", 2), content=made).write("a", soft())
    index = json.loads((tmp_path / "index.json").read_text())
    assert index == {"format": 1, "encoding": "topk", "k": 2, "classes": 3, "content": made}
    again = TargetStore(tmp_path)
    assert again.encoding == Encoding("topk", 2)
    again.write("b", soft(1))
    assert TargetStore(tmp_path, content=made).has("b")
    with pytest.raises(UserError, match="holds topk targets and uint8 is asked for"):
        TargetStore(tmp_path, encoding=Encoding("uint8"))
    with pytest.raises(UserError, match="answers of other teachers"):
        TargetStore(tmp_path, content="another")
    with pytest.raises(UserError, match="targets of another classes"):
        again.write("c", soft()[:2])
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(UserError, match="newer medkd"):
        TargetStore(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        TargetStore(tmp_path)


def test_the_digest_is_of_everything_and_of_nothing_else() -> None:
    one = content_digest({"a": 1, "b": [2]}, "x")
    assert one == content_digest({"b": [2], "a": 1}, "x")
    assert one != content_digest({"a": 1, "b": [3]}, "x")
    assert one != content_digest({"a": 1, "b": [2]}, "y")


def test_a_folder_without_an_index_is_read_as_before(tmp_path: Path) -> None:
    TargetStore(tmp_path).write("a", soft())
    for name in ("index.json", "a.target.json"):  # what the first release did not write
        (tmp_path / name).unlink()
    store = TargetStore(tmp_path)
    assert store.has("a")
    assert store.verify("a")
    assert store.trust("a") is None
    np.testing.assert_array_equal(store.read("a")[...], soft().astype(np.float16))
    store.write("b", soft(1))  # goes on as the folder began
    assert not (tmp_path / "index.json").exists()
    assert TargetStore(tmp_path).has("b")
    with pytest.raises(UserError, match="holds full16 targets"):
        TargetStore(tmp_path, encoding=Encoding("uint8"))
    path = tmp_path / "a.target.b2nd"
    path.write_bytes(path.read_bytes()[:-200])
    assert not TargetStore(tmp_path).verify("a")


@pytest.mark.parametrize("encoding", CODES, ids=str)
def test_trust_is_stored_beside(tmp_path: Path, encoding: Encoding) -> None:
    trust = np.random.default_rng(0).random((1, 9, 8, 7)).astype(np.float32)
    store = TargetStore(tmp_path, encoding=encoding)
    store.write("a", soft(), trust)
    store.write("b", soft())
    again = TargetStore(tmp_path, ram_mb=0)
    assert again.trust("b") is None
    found = again.trust("a")
    assert found.shape == (1, 9, 8, 7)
    assert found[...].dtype == np.float32
    np.testing.assert_allclose(found[:, 1:3], trust[:, 1:3], atol=0.5 / 255 + 1e-6)
    again.write("a", soft())  # an answer without trust takes the old one away
    assert TargetStore(tmp_path).trust("a") is None
    assert not (tmp_path / "a.trust.b2nd").exists()


@pytest.mark.parametrize("part", ["target.b2nd", "trust.b2nd", "target.npz", "target.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("encoding", CODES[1:], ids=str)
def test_any_damage_is_found_and_mended(tmp_path: Path, encoding: Encoding, damage: str, part: str) -> None:
    TargetStore(tmp_path, encoding=encoding).write("a", soft(), np.ones((1, 9, 8, 7)))
    TargetStore(tmp_path).write("b", soft(1))
    path = tmp_path / f"a.{part}"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        # the largest number in a card is its prior; anywhere else a changed bit is a changed file
        at = data.index(b'"shape"') + 14 if part == "target.json" else 3 * len(data) // 4
        data[at] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    store = TargetStore(tmp_path)
    assert store.has("a")  # cheap: it does not look inside
    with pytest.raises(DamagedTargetError, match=r"target of case a in .* is damaged .*run the same command") as told:
        store.read("a")
    assert told.value.case == "a"
    assert not store.verify("a")
    assert store.verify("b")
    asked = []

    def answer(case: str) -> np.ndarray:
        asked.append(case)
        return soft()

    assert store.fill(["a", "b"], answer) == 1
    assert asked == ["a"]
    assert TargetStore(tmp_path).verify("a")
    assert store.trust("a") is None
    np.testing.assert_allclose(store.read("a")[...], decode(encode(soft(), encoding), encoding, 3), atol=1e-6)


def test_damage_after_the_first_read_is_told_too(tmp_path: Path) -> None:
    TargetStore(tmp_path, encoding=Encoding("uint8")).write("a", np.tile(soft(), (1, 8, 8, 8)))
    stored = TargetStore(tmp_path, ram_mb=0).read("a")
    path = tmp_path / "a.target.b2nd"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    with pytest.raises(DamagedTargetError, match="case a"):
        stored[...]


def test_files_are_compared_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TargetStore(tmp_path, encoding=Encoding("uint8")).write("a", soft())
    store, calls = TargetStore(tmp_path), []
    digest = TargetStore._digest
    monkeypatch.setattr(TargetStore, "_digest", lambda self, *given: calls.append(given) or digest(self, *given))
    for _ in range(3):
        store.read("a")
        store.trust("a")
    assert len(calls) == 1
    pickle.loads(pickle.dumps(store)).read("a")  # another process trusts no file that it has not read itself
    assert len(calls) == 2


def test_a_discarded_case_is_gone(tmp_path: Path) -> None:
    store = TargetStore(tmp_path, encoding=Encoding("uint8"))
    store.write("a", soft(), np.ones((1, 9, 8, 7)))
    store.read("a")
    store.discard("a")
    assert not store.has("a")
    assert not store.verify("a")
    assert not list(tmp_path.glob("a.*"))
    with pytest.raises(UserError, match="missing"):
        store.read("a")
    store.write("a", soft(3))
    expected = decode(encode(soft(3), store.encoding), store.encoding, 3)
    np.testing.assert_allclose(store.read("a")[...], expected, atol=1e-6)


def test_what_is_stored_can_be_extrapolated(tmp_path: Path) -> None:
    store = TargetStore(tmp_path, encoding=Encoding("uint8"))
    store.write("a", soft())
    size, voxels = store.stored_bytes(["a", "b"])
    assert voxels == 9 * 8 * 7
    assert size == sum((tmp_path / f"a.target.{kind}").stat().st_size for kind in ("b2nd", "npz"))


FILL = """
import fcntl, sys, time
from pathlib import Path
import numpy as np
from medkd.teachers.cache import TargetStore
from medkd.teachers.encodings import Encoding

folder, log, *cases = sys.argv[1:]

def answer(case):
    time.sleep(0.05)
    with open(log, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(case + chr(10))
    p = np.random.default_rng(int(case)).dirichlet([1, 1, 1], (9, 8, 7))
    return p.transpose(3, 0, 1, 2).astype(np.float32)

Path(log + "." + cases[0]).touch()
while len(list(Path(log).parent.glob("log.*"))) < 2:
    time.sleep(0.01)
TargetStore(Path(folder), encoding=Encoding("uint8"), content="same").fill(cases, answer)
"""


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    folder, log = tmp_path / "targets", tmp_path / "log"
    cases = [str(n) for n in range(12)]
    program = [sys.executable, "-c", FILL, str(folder), str(log)]
    both = [subprocess.Popen([*program, *order]) for order in (cases, cases[::-1])]
    assert [one.wait(120) for one in both] == [0, 0]
    assert sorted(log.read_text().split(), key=int) == cases  # each was computed once, by one of the two
    store = TargetStore(folder)
    for case in cases:
        assert store.verify(case)
        expected = decode(encode(soft(int(case)), store.encoding), store.encoding, 3)
        np.testing.assert_allclose(store.read(case)[...], expected, atol=1e-6)
    assert not list(folder.glob("*.part"))


HOLD = """
import sys, time
from pathlib import Path
from medkd.teachers.cache import TargetStore

with TargetStore(Path(sys.argv[1])).hold("a"):
    (Path(sys.argv[1]) / "held").touch()
    time.sleep(60)
"""


def test_a_hold_ends_with_its_process(tmp_path: Path) -> None:
    store = TargetStore(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
        assert other.poll() is None
    with store.hold("a", wait=False) as mine:
        assert not mine
    with store.hold("b", wait=False) as mine:
        assert mine
    other.kill()
    other.wait(10)
    with store.hold("a", wait=False) as mine:
        assert mine
        store.write("a", soft())  # holds what is held already
    assert store.verify("a")
