"""Prepared volumes on disk: slices, damage, memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medkd.data.store import Store, Volumes, class_positions, read_patch, read_positions, write_positions
from medkd.errors import UserError

SHAPE = (2, 37, 20, 11)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("ram_mb", [0.0, 1000.0], ids=["lazy", "held"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 70, 65, 3), (3, 40, 30)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
def test_slices_are_what_was_written(tmp_path: Path, shape: tuple[int, ...], dtype: type, ram_mb: float) -> None:
    array = (10 * noise(*shape)).astype(dtype)
    Volumes(tmp_path).write("a", "image", array)
    stored = Volumes(tmp_path, ram_mb=ram_mb).read("a", "image")
    assert stored.shape == array.shape
    assert stored.dtype == array.dtype
    inner = (slice(None), *(slice(1, s - 1) for s in shape[1:]))
    for index in (..., inner, (slice(None), slice(0, 0)), 0):
        found = stored[index]
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, array[index])


@pytest.mark.parametrize("ram_mb", [0.0, 1000.0], ids=["lazy", "held"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_a_damaged_file_is_told(tmp_path: Path, damage: str, ram_mb: float) -> None:
    Volumes(tmp_path).write("a", "image", noise(1, 64, 64, 64))
    path = tmp_path / "a.image.b2nd"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "text": b"not a volume" * 100,
            "flipped": data[:400] + bytes(b ^ 0xFF for b in data[400 : len(data) // 2]) + data[len(data) // 2 :],
        }[damage]
    )
    with pytest.raises(UserError, match=r"a\.image\.b2nd is damaged"):
        Volumes(tmp_path, ram_mb=ram_mb).read("a", "image")[...]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"b\.label\.b2nd is missing"):
        Volumes(tmp_path).read("b", "label")
    assert not Volumes(tmp_path).has("b", "label")


def test_memory_stays_within_its_budget_least_used_out_first(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path, ram_mb=0.1)  # four arrays of 25 kB
    for case in "abcde":
        volumes.write(case, "image", noise(1, 6, 32, 32))
    for case in "abcd":
        volumes.read(case, "image")
    kept = volumes.read("a", "image")
    volumes.read("e", "image")
    assert volumes.read("a", "image") is kept
    assert sum(a.nbytes for a in volumes._held.values()) <= 0.1e6
    assert "b.image" not in volumes._held


def test_a_write_replaces_the_file_and_leaves_no_part(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    volumes.write("a", "image", noise(*SHAPE))
    (tmp_path / "a.image.part").write_bytes(b"left by a crash")
    second = noise(*SHAPE, seed=1)
    volumes.write("a", "image", second)
    assert [p.name for p in tmp_path.iterdir()] == ["a.image.b2nd"]
    np.testing.assert_array_equal(Volumes(tmp_path).read("a", "image")[...], second)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.image.b2nd").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        Volumes(tmp_path).write("a", "image", noise(*SHAPE))
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_positions(tmp_path / "a.npz", {})


def test_a_worker_opens_its_own_files(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path, ram_mb=0)
    volumes.write("a", "image", noise(*SHAPE))
    volumes.read("a", "image")
    sent = pickle.loads(pickle.dumps(volumes))
    np.testing.assert_array_equal(sent.read("a", "image")[...], noise(*SHAPE))


def test_a_store_knows_its_cases(tmp_path: Path) -> None:
    label = np.zeros((8, 8, 8), np.int64)
    label[2:4, 3, 3], label[7, 7, 7] = 1, 3
    store = Store(tmp_path)
    store.add("a", noise(2, 8, 8, 8), label)
    store.add("b", noise(2, 8, 8, 8).astype(np.float64), None)
    store.close()
    again = Store(tmp_path)
    assert again.index["a"]["voxels"] == {"1": 2, "3": 1}
    assert again.image("b")[...].dtype == np.float32
    assert again.label("b") is None
    np.testing.assert_array_equal(again.label("a")[...], label[None])
    assert again.label("a")[...].dtype == np.int16
    positions = again.positions("a")
    assert {k: sorted(map(tuple, v.tolist())) for k, v in positions.items()} == {
        1: [(2, 3, 3), (3, 3, 3)],
        3: [(7, 7, 7)],
    }


def test_positions_are_drawn_evenly_and_lie_in_their_class() -> None:
    label = np.zeros((30, 30, 30), np.int16)
    label[:, :, :15], label[0, 0, 20] = 1, 2
    label[5, 5, 25] = -1
    found = class_positions(label)
    assert set(found) == {1, 2}
    assert len(found[1]) == 2000
    assert len(np.unique(found[1], axis=0)) == 2000
    assert all(label[tuple(p)] == 1 for p in found[1])
    assert np.abs(found[1].mean(0) - [14.5, 14.5, 7]).max() < 1
    assert found[2].tolist() == [[0, 0, 20]]
    np.testing.assert_array_equal(class_positions(label)[1], found[1])
    assert class_positions(np.zeros((4, 4), np.int16)) == {}


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 100])
def test_damaged_positions_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_positions(tmp_path / "a.npz")
    with pytest.raises(UserError, match="missing"):
        read_positions(tmp_path / "b.npz")


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    data=st.data(),
)
def test_a_patch_is_the_padded_volume(shape: list[int], data: st.DataObject) -> None:
    array = noise(2, *shape)
    start = [data.draw(st.integers(-12, 12)) for _ in shape]
    size = [data.draw(st.integers(1, 9)) for _ in shape]
    padded = np.pad(array, [(0, 0), *[(12, 24)] * len(shape)], constant_values=-7)
    at = tuple(slice(12 + a, 12 + a + n) for a, n in zip(start, size, strict=True))
    found = read_patch(array, start, size, -7)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, padded[(slice(None), *at)])
