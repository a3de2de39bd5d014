"""Voxels, pairs and a critic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.adversarial.skd import SKD, cosines, gradient_penalty, hinge_critic, pairwise, pixelwise, wgan_critic
from medkd.methods.adversarial.skd_critic import SelfAttention, SpectralConv, StructureCritic, spectral_weight
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_equal_against_two_orthogonal_positions() -> None:
    s = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    t = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert pairwise(s, t).item() == pytest.approx(0.5)
    assert 0 <= pairwise(rand(2, 3, 4), -rand(2, 5, 4, seed=1)).item() <= 4


def test_pairs_by_hand() -> None:
    s, t = rand(1, 3, 4), rand(1, 2, 4, seed=1)

    def cosine(x: Tensor, i: int, j: int) -> float:
        return float(x[0, :, i] @ x[0, :, j] / x[0, :, i].norm() / x[0, :, j].norm())

    total = sum((cosine(s, i, j) - cosine(t, i, j)) ** 2 for i in range(4) for j in range(4))
    assert pairwise(s, t).item() == pytest.approx(total / 16, rel=1e-6)
    trust = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    torch.testing.assert_close(pairwise(s, t, trust=trust), pairwise(s[..., :2], t[..., :2]))
    assert torch.autograd.gradcheck(lambda x: pairwise(x, t), s.requires_grad_())


def test_pairs_know_no_rotation_and_no_scale() -> None:
    s, t = rand(2, 3, 5), rand(2, 4, 5, seed=1)
    turn = torch.linalg.qr(rand(3, 3, seed=2))[0]
    scale = rand(2, 1, 5, seed=3).abs() + 0.1
    torch.testing.assert_close(pairwise(torch.einsum("ij,bjn->bin", turn, s) * scale, t), pairwise(s, t))
    torch.testing.assert_close(cosines(s), cosines(s, detach_norm=True))


def test_voxel_term_knows_no_shift() -> None:
    s, t = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    torch.testing.assert_close(pixelwise(s + rand(2, 1, 4, seed=2), t), pixelwise(s, t))


def test_critic_losses() -> None:
    a, b = rand(4, 1), rand(4, 1, seed=1)
    torch.testing.assert_close(wgan_critic(a, b), -wgan_critic(b, a))
    assert hinge_critic(torch.tensor([-2.0]), torch.tensor([3.0])).item() == 0
    assert hinge_critic(torch.tensor([1.0]), torch.tensor([0.0])).item() == 3


def test_penalty_of_a_linear_critic_is_known() -> None:
    s, t, w = rand(2, 3, 4), rand(2, 3, 4, seed=1), rand(3, 4, seed=2)
    penalty = gradient_penalty(lambda x: (x * w).sum((1, 2)), s, t, torch.rand(2, 1, 1))
    torch.testing.assert_close(penalty, (w.norm() - 1) ** 2)
    assert gradient_penalty(lambda x: x.sum() * 0, s, t, torch.rand(2, 1, 1)).item() == pytest.approx(1)


def test_spectral_norm_is_the_largest_singular_value() -> None:
    weight, u = rand(5, 3, 2, 2), rand(5, seed=1)
    for _ in range(200):
        normed, u = spectral_weight(weight, u)
    assert torch.linalg.matrix_norm(normed.flatten(1), 2).item() == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(spectral_weight(weight, rand(5, seed=1), 3)[1], _iterated(weight, rand(5, seed=1), 3))


def _iterated(weight: Tensor, u: Tensor, times: int) -> Tensor:
    for _ in range(times):
        u = spectral_weight(weight, u)[1]
    return u


def test_spectral_convolution_rests_in_evaluation() -> None:
    layer = SpectralConv(2, 2, 3)
    before = layer.u.clone()
    layer.eval()(torch.randn(1, 2, 5, 5))
    assert torch.equal(layer.u, before)
    layer.train()(torch.randn(1, 2, 5, 5))
    assert not torch.equal(layer.u, before)


@pytest.mark.parametrize("size", [(1,), (5, 7), (3, 4, 9)])
def test_critic_takes_any_size_and_attends_to_nothing_at_first(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 4, *size)
    assert StructureCritic(4, len(size), width=4)(x).shape[:2] == (2, 1)
    torch.testing.assert_close(SelfAttention(len(size), 4)(x), x)


def reached(terms: dict[str, Tensor], module: nn.Module) -> bool:
    grads = torch.autograd.grad(
        torch.stack(list(terms.values())).sum(), list(module.parameters()), retain_graph=True, allow_unused=True
    )
    return any(g is not None and bool((g != 0).any()) for g in grads)


@pytest.mark.parametrize("adversary", ["wgan-gp", "hinge"])
def test_the_critics_turn_leaves_the_student_alone(seat: Seat, adversary: str) -> None:
    method = SKD(adversary=adversary)
    table = seat(method)
    players = []
    for turn in method.turns(table):
        players.append(turn.player)
        table.stepped(turn.player)
        if turn.player == "critic":
            assert not reached(dict(turn.terms), table.nets["student"])
            assert reached(dict(turn.terms), method.critic)
            assert ("penalty" in turn.terms) == (adversary == "wgan-gp")
    assert players == ["student", "critic"]
    assert method.players() == {"critic": method.critic}
    assert method.rates() == {"critic": method.critic_rate}


def test_parts_can_be_left_out(seat: Seat) -> None:
    method = SKD(pair=0.0, holistic=0.0)
    assert method.taps() == method.teacher_taps() == ()
    (turn,) = list(method.turns(seat(method)))
    assert set(turn.terms) == {"pixel"}
    assert method.players() == method.rates() == {}
    assert not list(method.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"pair": -1.0},
        {"temperature": 0.0},
        {"adversary": "gan"},
        {"critic_rate": 0.0},
        {"nodes": 5000},
        {"reduction": "sum"},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="skd: "):
        SKD(**wrong)  # type: ignore[arg-type]
