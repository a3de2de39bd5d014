"""Patches: which, where, and the same whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medkd.data.patches import HardTargets, LabelTargets, Patches, Sampling, stream
from medkd.data.store import Store, read_patch
from medkd.data.transforms import Augment
from medkd.errors import UserError
from medkd.types import IGNORE, Batch

Array = NDArray[Any]
PATCH = (16, 16, 16)
SHAPES = {"a": (24, 20, 18), "b": (16, 16, 16), "u": (20, 24, 16), "v": (10, 30, 12)}


class Soft:
    """A teacher that says what its case's label would be, with 0.7."""

    def __init__(self, truths: dict[str, Array]) -> None:
        self.truths = truths

    def read(self, case: str) -> Array:
        hot = self.truths[case][None] == np.arange(3).reshape(3, 1, 1, 1)
        return np.where(hot, 0.7, 0.15).astype(np.float16)

    def trust(self, case: str) -> Array | None:
        return None

    def known(self, case: str) -> Sequence[bool] | None:
        return None

    def positions(self, case: str) -> dict[int, Array]:
        return {k: np.argwhere(self.truths[case] == k) for k in (1, 2)}


@pytest.fixture(scope="module")
def truths() -> dict[str, Array]:
    found = {}
    for i, (case, shape) in enumerate(SHAPES.items()):
        label = np.zeros(shape, np.int64)
        label[2:6, 3:6, 4:9], label[7:9, 10:14, 2:4] = 1, 2
        found[case] = np.roll(label, i, 0)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, truths: dict[str, Array]) -> Store:
    """Two labelled and two unlabelled cases; an image is its label plus 10 times the number of its case."""
    made = Store(tmp_path_factory.mktemp("store"))
    for i, (case, label) in enumerate(truths.items()):
        made.add(case, label[None] + 10.0 * (i + 1), label if case in "ab" else None)
    made.close()
    return made


BASE = Sampling(labelled=("a", "b"), unlabelled=(), patch=PATCH, batch=2, spacing_mm=(1.0, 1.0, 2.0), seed=3)
BOTH = replace(BASE, unlabelled=("u", "v"))


def same(a: Batch, b: Batch) -> bool:
    assert a.case == b.case
    assert (a.target is None) == (b.target is None)
    pairs = [(a.image, b.image), (a.label, b.label), (a.trust, b.trust), (a.target, b.target)]
    return all(x is None or y is None or torch.equal(x, y) for x, y in pairs)


def still(*, patch: tuple[int, ...] = PATCH) -> Augment:
    return Augment("none", patch)


def full() -> Augment:
    return Augment("default", PATCH, mirror_axes=(0, 1, 2), mirror_swap=((1, 2),))


def test_shapes_and_types(store: Store, truths: dict[str, Array]) -> None:
    batch = Patches(store, BOTH, full(), Soft(truths))[0]
    assert batch.image.shape == (2, 1, *PATCH)
    assert batch.label.shape == (2, *PATCH)
    assert batch.target is not None
    assert batch.target.shape == (2, 3, *PATCH)
    assert batch.trust is not None
    assert batch.trust.shape == (2, 1, *PATCH)
    assert (batch.image.dtype, batch.label.dtype) == (torch.float32, torch.int64)
    assert batch.spacing_mm == (1.0, 1.0, 2.0)
    assert not batch.regions


def test_a_batch_follows_from_seed_and_step_alone(store: Store, truths: dict[str, Array]) -> None:
    one, two = (Patches(store, BOTH, full(), Soft(truths)) for _ in range(2))
    forwards = [one[i] for i in range(6)]
    backwards = [two[i] for i in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    other = Patches(store, replace(BOTH, seed=4), full(), Soft(truths))
    assert not any(torch.equal(other[i].image, forwards[i].image) for i in range(6))
    assert not any(torch.equal(forwards[i].image, forwards[i + 1].image) for i in range(5))


def test_a_stream_is_the_same_from_any_start(store: Store, truths: dict[str, Array]) -> None:
    patches = Patches(store, BOTH, full(), Soft(truths))
    whole, rest = list(stream(patches, 0, 6)), list(stream(patches, 3, 6))
    assert len(whole) == 6
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert list(stream(patches, 3, 3)) == []


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # a machine with one core
def test_workers_change_nothing(store: Store, truths: dict[str, Array]) -> None:
    patches = Patches(store, BOTH, full(), Soft(truths))
    alone, shared = stream(patches, 2, 7), stream(patches, 2, 7, workers=2)
    assert [same(a, b) for a, b in zip(alone, shared, strict=True)] == [True] * 5


def test_a_stream_leaves_the_global_generator_alone(store: Store, truths: dict[str, Array]) -> None:
    """A dropout mask after a resume must be what it would have been."""
    state = torch.get_rng_state()
    next(stream(Patches(store, BOTH, full(), Soft(truths)), 0, 3))
    assert torch.equal(state, torch.get_rng_state())


def test_drawing_does_not_change_the_volumes(store: Store, truths: dict[str, Array]) -> None:
    patches = Patches(store, replace(BASE, labelled=("b",)), full(), Soft(truths))
    before = np.array(store.image("b")[...])
    for i in range(10):
        batch = patches[i]
        batch.image.zero_()
    np.testing.assert_array_equal(store.image("b")[...], before)


# ---- what is in a patch


def draws(patches: Patches, steps: int) -> Iterator[tuple[str, Batch, int]]:
    for i in range(steps):
        batch = patches[i]
        for j, case in enumerate(batch.case):
            yield case, batch, j


def test_labelled_cases_have_labels_and_the_others_none(store: Store, truths: dict[str, Array]) -> None:
    seen = set()
    for case, batch, j in draws(Patches(store, BOTH, still(), Soft(truths)), 20):
        seen.add(case)
        number = 10.0 * (list(SHAPES).index(case) + 1)
        assert batch.trust is not None
        assert batch.target is not None
        inside = batch.trust[j, 0] > 0
        assert bool((batch.image[j, 0][~inside] == 0).all())
        truth = (batch.image[j, 0] - number).long()
        assert torch.equal(batch.target[j].argmax(0)[inside], truth[inside])
        if case in "ab":
            assert torch.equal(batch.label[j][inside], truth[inside])
            assert bool((batch.label[j][~inside] == IGNORE).all())
        else:
            assert bool((batch.label[j] == IGNORE).all())
    assert seen == set(SHAPES)


def test_pseudo_labels_are_the_teachers_decision(store: Store, truths: dict[str, Array]) -> None:
    sampling = replace(BOTH, labelled=(), pseudo=True)
    for _, batch, j in draws(Patches(store, sampling, still(), HardTargets(Soft(truths))), 10):
        assert batch.target is not None
        assert batch.trust is not None
        inside = batch.trust[j, 0] > 0
        assert torch.equal(batch.label[j][inside], batch.target[j].argmax(0)[inside])
        assert bool((batch.label[j][~inside] == IGNORE).all())
        assert set(batch.target[j].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("augment", [still(), full()], ids=["still", "full"])
def test_a_volume_smaller_than_the_patch_is_padded(store: Store, truths: dict[str, Array], augment: Augment) -> None:
    """The 10 and 12 voxels of v along two axes are all there, wherever they lie; the rest has no trust and no label."""
    sampling = replace(BOTH, labelled=(), unlabelled=("v",), foreground=0.0)
    for _, batch, j in draws(Patches(store, sampling, augment, Soft(truths)), 15):
        assert batch.trust is not None
        inside = batch.trust[j, 0] > 0
        assert inside.float().mean() > 0.7 * (10 * 12) / (16 * 16)
        assert inside.float().mean() < 1
    patches = Patches(store, sampling, still(), Soft(truths))
    starts = {tuple(patches[i].trust[0, 0].nonzero()[0].tolist()) for i in range(20)}  # type: ignore[index]
    assert len({s[0] for s in starts}) > 3  # not always in the same corner


def test_an_affine_patch_of_a_volume_of_its_size_shows_it_whole(store: Store, truths: dict[str, Array]) -> None:
    augment = full()
    patches = Patches(store, replace(BASE, labelled=("b",)), augment, Soft(truths))
    for i in range(20):
        start = patches._start("b", True, SHAPES["b"], augment.margin, np.random.default_rng(i))
        assert start == [-2, -2, -2]  # the margin of 20 around the patch of 16


def test_without_targets_a_live_teacher_may_speak_inside_the_volume(store: Store, truths: dict[str, Array]) -> None:
    sampling = replace(BOTH, live_teacher=True)
    with_targets = Patches(store, sampling, still(), Soft(truths))
    for i in range(10):
        live, stored = Patches(store, sampling, still())[i], with_targets[i]
        assert live.target is None
        if live.case == stored.case and not set(live.case) & {"u", "v"}:
            assert torch.equal(live.trust, stored.trust)  # type: ignore[arg-type]
        for j, case in enumerate(live.case):
            inside = np.prod(np.minimum(PATCH, SHAPES[case])) / np.prod(PATCH)
            assert live.trust is not None
            assert live.trust[j].mean().item() == pytest.approx(inside)


def test_foreground_is_drawn_by_class(store: Store) -> None:
    small = (4, 4, 4)
    sampling = replace(BASE, labelled=("a",), patch=small, batch=1, foreground=1.0)
    patches = Patches(store, sampling, still(patch=small))
    with_1, with_2 = np.mean([[(patches[i].label == k).any() for k in (1, 2)] for i in range(60)], 0)
    assert with_1 > 0.3
    assert with_2 > 0.3
    never = Patches(store, replace(sampling, foreground=0.0), still(patch=small))
    assert np.mean([(never[i].label > 0).any() for i in range(60)]) < 0.5
    assert np.mean([(patches[i].label > 0).any() for i in range(60)]) > 0.9


def test_the_share_of_labelled_cases(store: Store, truths: dict[str, Array]) -> None:
    for share in (0.0, 0.25, 1.0):
        patches = Patches(store, replace(BOTH, labelled_share=share), still(), Soft(truths))
        cases = [case for i in range(60) for case in patches[i].case]
        assert np.mean([case in "ab" for case in cases]) == pytest.approx(share, abs=0.1)


def test_where_most_cases_have_labels_so_have_most_patches(store: Store, truths: dict[str, Array]) -> None:
    for labelled, unlabelled, share in (("ab", "uv", 0.5), ("ab", "u", 0.67), ("a", "uv", 0.5)):
        sampling = replace(BOTH, labelled=tuple(labelled), unlabelled=tuple(unlabelled), labelled_share=None)
        patches = Patches(store, sampling, still(), Soft(truths))
        cases = [case for i in range(60) for case in patches[i].case]
        assert np.mean([case in labelled for case in cases]) == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 19, 20, 21, 40])
def test_a_start_keeps_the_patch_on_the_volume(store: Store, length: int) -> None:
    augment = full()
    patches = Patches(store, BASE, augment)
    for size in (PATCH, augment.margin):
        for seed in range(30):
            start = patches._start("a", True, (length,) * 3, size, np.random.default_rng(seed))
            offset = (size[0] - 16) // 2
            for first in start:
                shown = min(length, first + offset + 16) - max(0, first + offset)
                assert shown == min(length, 16)


def test_nothing_to_draw_from_is_told(store: Store, truths: dict[str, Array]) -> None:
    with pytest.raises(UserError, match="no training case"):
        Patches(store, replace(BASE, labelled=()), still())
    with pytest.raises(UserError, match="unlabelled cases need"):
        Patches(store, BOTH, still())


# ---- what stands in a teacher's place


@pytest.mark.parametrize("start", [(0, 0, 0), (3, -2, 5), (20, 0, 0)], ids=str)
def test_labels_and_decisions_as_targets(store: Store, truths: dict[str, Array], start: tuple[int, ...]) -> None:
    hot = (truths["a"][None] == np.arange(3).reshape(3, 1, 1, 1)).astype(np.float16)
    for targets in (LabelTargets(store, 3), HardTargets(Soft(truths))):
        stored = targets.read("a")
        assert stored.shape == hot.shape
        np.testing.assert_array_equal(stored[...], hot)
        expected = read_patch(hot, start, (8, 8, 8), 0)
        found = read_patch(stored, start, (8, 8, 8), 0)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float16
        assert set(targets.positions("a")) == {1, 2}


def test_an_unknown_voxel_is_no_target(tmp_path: Path) -> None:
    label = np.zeros((16, 16, 16), np.int64)
    label[:8] = IGNORE
    store = Store(tmp_path)
    store.add("a", np.zeros((1, 16, 16, 16)), label)
    patches = Patches(store, replace(BASE, labelled=("a",)), still(), LabelTargets(store, 2))
    batch = patches[0]
    assert batch.trust is not None
    assert bool((batch.trust[:, :, :8] == 0).all())
    assert bool((batch.trust[:, :, 8:] == 1).all())


class Doubtful(Soft):
    """A teacher that is trusted by half in the left of a case, and knows only one class of case b."""

    def trust(self, case: str) -> Array | None:
        trust = np.ones((1, *self.truths[case].shape), np.float32)
        trust[:, : trust.shape[1] // 2] = 0.5
        return None if case == "a" else trust

    def known(self, case: str) -> Sequence[bool] | None:
        return None if case == "a" else (True, True, False)


def test_trust_and_known_classes_come_with_their_case(store: Store, truths: dict[str, Array]) -> None:
    batches = [Patches(store, BASE, still(), Doubtful(truths))[i] for i in range(10)]
    plain = [Patches(store, BASE, still(), Soft(truths))[i] for i in range(10)]
    assert {case for batch in batches for case in batch.case} == {"a", "b"}
    assert all(batch.target_known is None for batch in plain)
    for batch, before in zip(batches, plain, strict=True):
        assert batch.trust is not None
        assert before.trust is not None
        for j, case in enumerate(batch.case):
            if case == "a":
                assert torch.equal(batch.trust[j], before.trust[j])
            else:
                inside = batch.trust[j][before.trust[j] > 0]
                halves = {round(value, 2) for value in inside.tolist()}  # the mass of float16 is not quite 1
                assert halves == {0.5, 1.0}
            if batch.target_known is not None:
                assert batch.target_known[j].tolist() == [True, True, case == "a"]
        assert (batch.target_known is None) == (set(batch.case) == {"a"})


def test_what_is_known_changes_sides_with_the_patch(store: Store, truths: dict[str, Array]) -> None:
    """Class 1 alone is known; in a patch whose left and right were exchanged, what was 1 is called 2."""
    sampling = replace(BASE, labelled=("b",), batch=1)
    augment = Augment("light", PATCH, mirror_axes=(0,), mirror_swap=((1, 2),))
    seen = set()
    for i in range(12):
        batch = Patches(store, sampling, augment, Doubtful(truths))[i]
        assert batch.target is not None
        assert batch.target_known is not None
        plain = torch.from_numpy(Doubtful(truths).read("b")).argmax(0)
        swapped = not torch.equal(batch.target[0].argmax(0), plain)
        assert batch.target_known[0].tolist() == ([True, False, True] if swapped else [True, True, False])
        seen.add(swapped)
    assert seen == {True, False}


def test_live_teachers_know_what_they_know(store: Store) -> None:
    sampling = replace(BASE, live_teacher=True, live_known=(True, False, True))
    batch = Patches(store, sampling, still())[0]
    assert batch.target_known is not None
    assert batch.target_known.tolist() == [[True, False, True]] * 2


def test_labels_know_what_they_know_and_it_changes_sides_with_the_patch(store: Store, truths: dict[str, Array]) -> None:
    """Of unlabelled cases the label says nothing; a mirrored sample knows the other side."""
    augment = Augment("light", PATCH, mirror_axes=(0,), mirror_swap=((1, 2),))
    patches = Patches(store, replace(BOTH, known=(True, True, False)), augment, Soft(truths))
    rows = {"ab": set(), "uv": set()}  # type: ignore[var-annotated]
    for i in range(12):
        batch = patches[i]
        assert batch.target_known is None
        assert batch.known is not None
        for case, row in zip(batch.case, batch.known.tolist(), strict=True):
            rows["ab" if case in "ab" else "uv"].add(tuple(row))
    assert rows == {"ab": {(True, True, False), (True, False, True)}, "uv": {(True, True, True)}}
    assert Patches(store, BOTH, augment, Soft(truths))[0].known is None


def test_pseudo_labels_know_what_their_teachers_know(store: Store, truths: dict[str, Array]) -> None:
    sampling = replace(BASE, labelled=(), unlabelled=("a", "b"), pseudo=True)
    patches = Patches(store, sampling, still(), HardTargets(Doubtful(truths)))
    for i in range(8):
        batch = patches[i]
        known = torch.ones(2, 3).bool() if batch.known is None else batch.known
        assert [row.tolist() for row in known] == [[True, True, case == "a"] for case in batch.case]


def test_patches_show_what_only_the_teacher_knows(store: Store, truths: dict[str, Array]) -> None:
    """Where labels know one class, the others are drawn from what the teacher sees."""
    sampling = replace(BASE, foreground=1.0, known=(True, True, False))
    patches = Patches(store, sampling, still(), Soft(truths))
    starts = [patches._start("a", True, SHAPES["a"], (4, 4, 4), np.random.default_rng(i)) for i in range(40)]
    mark = np.argwhere(truths["a"] == 2).mean(0)
    assert sum(float(np.abs(np.array(start) + 2 - mark).max()) < 5 for start in starts) > 8
    assert set(store.positions("a")) == {1, 2}
