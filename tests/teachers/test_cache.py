"""Stored teacher answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.teachers.cache import TargetStore


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

    monkeypatch.setattr(np, "savez", full_disk)
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
