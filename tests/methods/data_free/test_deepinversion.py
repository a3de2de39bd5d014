"""Dreams of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.data_free.deepinversion import (
    DeepInversion,
    Dream,
    batch_norms,
    competition,
    statistics_gap,
    total_variation,
)
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**more: Any) -> DeepInversion:
    return DeepInversion(**{"patch": (8, 8), "channels": 6, "dream_steps": 4, "inner": 2, "bank": 2, **more})


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 4, 6), (2, 5, 4, 6, 3)])
def test_statistics_that_fit_cost_nothing(shape: tuple[int, ...]) -> None:
    x = rand(*shape)
    rows = x.transpose(0, 1).flatten(1)
    mean, variance = rows.mean(1), rows.var(1, correction=0)
    assert statistics_gap(x, mean, variance).item() == pytest.approx(0, abs=1e-10)
    expected = (mean - 1).norm() + (variance - 2).norm()
    torch.testing.assert_close(statistics_gap(x, torch.ones(5), torch.full((5,), 2.0)), expected)
    assert torch.autograd.gradcheck(lambda y: statistics_gap(y, mean + 1, variance + 1), x.requires_grad_())


def test_variation_of_constants_is_zero_and_of_a_step_known() -> None:
    assert total_variation(torch.ones(2, 1, 4, 5, 3))[0].item() == 0
    x = torch.tensor([[[0.0, 0.0, 1.0]]])
    l1, l2 = total_variation(x)
    assert (l1.item(), l2.item()) == (0.5, 1.0)
    assert total_variation(x, mean=True)[1].item() == pytest.approx(0.5**0.5)
    assert total_variation(torch.ones(1, 1, 1, 1))[1].item() == 0


def test_three_axes_have_nine_directions() -> None:
    x = rand(1, 1, 3, 4, 5)
    total = 0.0
    for d in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1)]:
        gaps = []
        for i in range(3):
            for j in range(4):
                for k in range(5):
                    a, b, c = i + d[0], j + d[1], k + d[2]
                    if 0 <= a < 3 and 0 <= b < 4 and 0 <= c < 5:
                        gaps.append(abs(float(x[0, 0, i, j, k] - x[0, 0, a, b, c])))
        total += sum(gaps) / len(gaps)
    assert total_variation(x)[0].item() == pytest.approx(total)


def test_agreement_competes_least() -> None:
    z = rand(2, 4, 3)
    assert competition(z, z).item() == pytest.approx(1, abs=0.02)
    assert competition(z, -5 * z) < competition(z, -z) < competition(z, z)
    assert torch.autograd.gradcheck(
        lambda a, b: competition(a, b), (rand(2, 3, 2).requires_grad_(), z[:, :3, :2].clone().requires_grad_())
    )


def test_one_step_moves_a_dream_gain_times_further() -> None:
    dream = Dream((1, 1, 3), 30.0)
    before = dream().detach().clone()
    optimiser = torch.optim.Adam(dream.parameters(), lr=0.01)
    dream().sum().backward()
    optimiser.step()
    torch.testing.assert_close(dream().detach(), before - 0.3, rtol=1e-4, atol=1e-4)


def test_a_round_and_what_it_leaves_alone(seat: Seat) -> None:
    method = make(compete=0.5)
    table = seat(method)
    frozen = {name: x.clone() for name, x in table.nets["teacher0"].state_dict().items()}
    players = []
    for turn in method.turns(table):
        players.append(turn.player)
        loss = torch.stack(list(turn.terms.values())).sum()
        (grad,) = torch.autograd.grad(loss, [method.dream.image], allow_unused=True, retain_graph=True)
        assert (grad is not None and bool((grad != 0).any())) == (turn.player == "dream")
        loss.backward(inputs=list((method.dream if turn.player == "dream" else table.nets["student"]).parameters()))
        table.stepped(turn.player)
    assert players == ["dream", "dream", "student"]
    for name, x in table.nets["teacher0"].state_dict().items():
        assert torch.equal(x, frozen[name]), name


def test_images_of_the_batch_are_never_read(seat: Seat) -> None:
    values = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        method = make()
        table = seat(method)
        torch.manual_seed(1)
        table.batch.image.mul_(scale)
        values.append([float(v.detach()) for turn in method.turns(table) for v in turn.terms.values()])
    assert values[0] == values[1]


def test_finished_dreams_are_kept_and_begun_anew(seat: Seat) -> None:
    method = make(dream_steps=2)
    table = seat(method)
    for rounds in (1, 2, 3):
        table.deal(table.batch, 0.0)
        for turn in method.turns(table):
            table.stepped(turn.player)
        assert int(method.finished) == rounds
        assert int(method.age) == 0
    assert bool((method.kept != 0).any())
    assert torch.equal(method.wanted, table.batch.label)


def test_a_teacher_must_remember_statistics() -> None:
    with pytest.raises(UserError, match="norm: batch"):
        batch_norms(iter([nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1))]))
    with pytest.raises(UserError, match="norm: batch"):
        batch_norms(iter([nn.BatchNorm2d(1, track_running_stats=False)]))
    assert len(batch_norms(iter([nn.BatchNorm3d(1), nn.BatchNorm1d(1)]))) == 2


def test_axes_must_agree(seat: Seat) -> None:
    with pytest.raises(UserError, match="2 axes and the network 3"):
        seat(make(), size=(8, 8, 8))


@pytest.mark.parametrize("wrong", [{"patch": ()}, {"gain": 0.0}, {"tv": -1.0}, {"count": 0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="deepinversion: "):
        make(**wrong)
