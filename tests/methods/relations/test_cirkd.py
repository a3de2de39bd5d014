"""Relations across images and to remembered scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.ops import one_hot
from medkd.methods.parts import unit
from medkd.methods.relations.cirkd import CIRKD, ClassMemory, cross_image, draw, memory_kl, ranks, region_rows
from medkd.types import IGNORE, Anatomy, Batch, Tap, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def slow(s: Tensor, t: Tensor, tau: float) -> float:
    f, g = (
        [a.numpy().reshape(a.shape[0], -1) / np.linalg.norm(a.numpy().reshape(a.shape[0], -1), axis=0) for a in x]
        for x in (s, t)
    )
    found = []
    for i in range(len(f)):
        for j in range(len(f)):
            for n in range(f[0].shape[1]):
                p, q = softmax(g[i][:, n] @ g[j] / tau), softmax(f[i][:, n] @ f[j] / tau)
                found.append((p * np.log(p / q)).sum())
    return float(np.mean(found))


@pytest.mark.parametrize("space", [(7,), (3, 4), (2, 3, 2)])
def test_across_images_is_the_formula(space: tuple[int, ...]) -> None:
    s, t = rand(3, 4, *space), rand(3, 6, *space, seed=1)
    assert cross_image(s, t, 0.2).item() == pytest.approx(slow(s, t, 0.2), rel=1e-9)


def test_gradients() -> None:
    t, keys = rand(2, 5, 3, seed=1), unit(rand(6, 5, seed=2), 1)
    assert torch.autograd.gradcheck(lambda x: cross_image(x, t, 0.5), rand(2, 3, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: memory_kl(x, rand(4, 5, seed=3), keys, 0.5), rand(4, 5).requires_grad_())


def test_zero_for_equals_and_no_rotation_matters() -> None:
    s, t = rand(2, 4, 3, 3), rand(2, 6, 3, 3, seed=1)
    turn, _ = torch.linalg.qr(rand(4, 4, seed=2))
    assert cross_image(t, t).item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(cross_image(torch.einsum("ij,bj...->bi...", turn, s), t), cross_image(s, t))
    rows = rand(5, 6)
    assert memory_kl(3 * rows, rows, unit(rand(7, 6, seed=1))).item() == pytest.approx(0, abs=1e-9)
    assert memory_kl(rows, rows, rows[:0]) == 0


def test_what_is_not_trusted_is_nobodys_neighbour() -> None:
    s, t = rand(2, 4, 6), rand(2, 5, 6, seed=1)
    trust = torch.ones(2, 1, 6)
    trust[..., 4:] = 0
    torch.testing.assert_close(cross_image(s, t, trust=trust), cross_image(s[..., :4], t[..., :4]))
    trust[0] = 0  # and a whole image
    torch.testing.assert_close(cross_image(s, t, trust=trust), cross_image(s[1:, :, :4], t[1:, :, :4]))


def test_ranks_count_within_the_group() -> None:
    assert ranks(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]
    assert ranks(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_as_many_of_each_group_are_drawn() -> None:
    group = torch.tensor([-1] * 5 + [0] * 20 + [3] * 2)
    at = draw(group, 4)
    assert sorted(group[at].tolist()) == [0, 0, 0, 0, 3, 3]
    assert len(set(at.tolist())) == 6


def test_the_memory_is_first_in_first_out_a_class() -> None:
    memory = ClassMemory(3, 2, 1)
    memory.write(torch.arange(5.0).unsqueeze(1), torch.tensor([0, 0, 0, 2, 0]))
    assert memory.rows.squeeze(2).tolist() == [[2, 4], [0, 0], [3, 0]]
    assert memory.at.tolist() == [0, 0, 1]
    assert memory.filled.tolist() == [2, 0, 1]
    memory.write(torch.tensor([[7.0]]), torch.tensor([0]))
    assert memory.rows[0].squeeze(1).tolist() == [7, 4]
    assert sorted(memory.draw(9).flatten().tolist()) == [3, 4, 7]
    assert len(memory.draw(1)) == 2


def test_regions_are_mean_directions() -> None:
    x, label = unit(rand(2, 3, 4)), torch.tensor([[0, 0, 2, IGNORE], [1, 1, 1, 1]])
    rows, owner = region_rows(x, label, 3)
    assert owner.tolist() == [0, 2, 1]
    torch.testing.assert_close(rows[0], unit(x[0, :, :2].mean(1), 0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3, dtype=torch.float64))


def scene() -> tuple[View, View, Batch]:
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[0, :4], label[1, 6:], label[:, :, 7] = 1, 2, IGNORE
    s, t = rand(2, 4, 8, 8).float().requires_grad_(), rand(2, 6, 4, 4, seed=1).float()
    logits = torch.zeros(2, 3, 8, 8)
    return View(logits, {"dec0": s}), View(logits, {"dec0": t}), Batch(torch.zeros(2, 1, 8, 8), label)


def ready(**arguments: object) -> CIRKD:
    torch.manual_seed(0)
    method = CIRKD(**arguments)  # type: ignore[arg-type]
    method.setup(Anatomy({"dec0": Tap(4, (1, 1))}, 3, 2), Anatomy({"dec0": Tap(6, (2, 2))}, 3, 2))
    return method


def test_a_class_is_remembered_by_its_own_voxels() -> None:
    s, t, batch = scene()
    method = ready(each=3)
    method(s, t, batch)
    features = unit(t.taps["dec0"])
    hot = one_hot(torch.nn.functional.interpolate(batch.label.unsqueeze(1).float(), (4, 4)).squeeze(1).long(), 3)
    assert method.pixels.filled.tolist() == [6, 3, 3]
    assert method.regional.filled.tolist() == [2, 1, 1]
    for k in range(3):
        own = features.movedim(1, -1)[hot[:, k] > 0]
        for row in method.pixels.rows[k, : method.pixels.filled[k]]:
            assert (own - row).norm(dim=1).min() < 1e-6
    assert method.pixels.rows[0, :6].norm(dim=1).tolist() == pytest.approx([1] * 6, rel=1e-5)


def test_gradients_reach_student_and_projector_and_never_the_memory() -> None:
    s, t, batch = scene()
    method = ready()
    terms = method(s, t, batch)
    (terms["pixel"] + terms["region"]).backward()
    assert s.taps["dec0"].grad is not None
    assert s.taps["dec0"].grad.abs().sum() > 0
    assert all(p.grad is not None for p in method.projector.parameters())
    assert not any(x.requires_grad for x in method.buffers())


def test_evaluation_remembers_nothing() -> None:
    method = ready().eval()
    terms = method(*scene())
    assert int(method.pixels.filled.sum()) == 0
    assert terms["pixel"] == 0
    assert terms["batch"] > 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"pixel": -1}, {"nodes": 5000}, {"each": 0}, {"pixel_memory": 0}]
)
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="cirkd: "):
        CIRKD(**wrong)  # type: ignore[arg-type]
