"""Region embeddings and trusted nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.ops import one_hot, resize_to
from medkd.methods.regions import (
    cell_embeddings,
    check_source,
    class_shares,
    paired_regions,
    region_masks,
    trusted_nodes,
)
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(-1, classes, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("space", "size"),
    [((8,), (4,)), ((8, 6), (2, 3)), ((8, 4, 6), (4, 4, 3)), ((7, 5), (3, 2)), ((4, 4), (4, 4)), ((4, 4), (8, 8))],
)
@pytest.mark.parametrize("with_trust", [False, True])
def test_shares_are_one_hot_pooled_by_area(space: tuple[int, ...], size: tuple[int, ...], with_trust: bool) -> None:
    owner = labels(2, *space)
    trust = (rand(2, 1, *space) > 0).float() if with_trust else None
    hot = one_hot(owner, 3) if trust is None else one_hot(owner, 3) * trust
    torch.testing.assert_close(class_shares(owner, 3, size, trust), resize_to(hot, size))


def test_masks_of_the_teacher_and_of_overlapping_regions() -> None:
    z = rand(1, 2, 4, 4)
    exclusive = Batch(z, torch.full((1, 4, 4), IGNORE))
    assert float(region_masks(View(z), exclusive, (4, 4)).sum()) == 0
    torch.testing.assert_close(region_masks(View(z), exclusive, (4, 4), "teacher"), one_hot(z.argmax(1), 2))
    label = (rand(1, 2, 4, 4, seed=1) > 0).long()
    label[0, 0, 0] = IGNORE
    overlapping = Batch(z, label, regions=True)
    torch.testing.assert_close(region_masks(View(z), overlapping, (4, 4)), (label == 1).float())
    torch.testing.assert_close(region_masks(View(z), overlapping, (4, 4), "teacher"), (z > 0).float())


def test_small_and_unknown_regions_are_dropped() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[0, :2, :4] = 1  # exactly 8 voxels
    label[0, 7, :7] = 2  # 7
    s, t = rand(1, 5, 4, 4).requires_grad_(), rand(1, 7, 2, 2, seed=1)
    found = paired_regions(s, t, View(torch.zeros(1, 3, 8, 8)), Batch(torch.zeros(1, 1, 8, 8), label))
    assert found.present.tolist() == [[True, True, False]]
    ours, theirs = found.rows()
    assert ours.shape == (2, 5)
    assert theirs.shape == (2, 7)
    torch.testing.assert_close(ours[1], s[0, :, 0, :2].mean(1))
    assert not theirs.requires_grad


def test_cells_follow_the_classes() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    s, t = rand(1, 5, 4, 4), rand(1, 7, 2, 2, seed=1)
    trust = torch.ones(1, 1, 8, 8)
    trust[..., :4, :4] = 0
    view = View(torch.zeros(1, 2, 8, 8), {}, trust)
    found = paired_regions(s, t, view, Batch(torch.zeros(1, 1, 8, 8), label), cells=2)
    assert found.present.tolist() == [[True, False, False, True, True, True]]
    torch.testing.assert_close(found.student[0, 3], s[0, :, :2, 2:].flatten(1).mean(1))


def test_what_is_not_trusted_does_not_matter_even_when_not_finite() -> None:
    trust = torch.ones(1, 1, 8, 8)
    trust[..., 4:] = 0
    a = rand(1, 3, 8, 8)
    b = a.clone()
    b[..., 4:] = float("inf")
    for x, y in zip(cell_embeddings(a, (2, 2), trust), cell_embeddings(b, (2, 2), trust), strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(trusted_nodes(a, trust, 16), trusted_nodes(b, trust, 16), strict=True):
        torch.testing.assert_close(x, y)


def test_nodes_without_trust_are_pooled_means() -> None:
    x = rand(2, 3, 8, 8)
    nodes, weight = trusted_nodes(x, None, 16)
    torch.testing.assert_close(nodes.transpose(1, 2).view(2, 3, 4, 4), resize_to(x, (4, 4)))
    assert weight.tolist() == torch.ones(2, 16).tolist()


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UserError, match="source 'labels' is not one of label, teacher"):
        check_source("sp", "labels")
