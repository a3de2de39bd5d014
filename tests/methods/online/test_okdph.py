"""Learners and the network of their mixed weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.online.okdph import OKDPH, check_alike, draw_ratios, fuse, hybrid, okdph
from medkd.methods.supervised import dice_ce
from medkd.training.round import Table

Seat = Callable[..., Table]


def weights(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(3, 4, generator=g), "steps": torch.tensor(seed)}


def test_equal_learners_are_their_hybrid_and_fusing_changes_nothing() -> None:
    mixed = hybrid([weights(1), weights(1)], [0.3, 0.7])
    torch.testing.assert_close(mixed["w"], weights(1)["w"])
    torch.testing.assert_close(fuse(weights(1), mixed, 0.5)["w"], weights(1)["w"])


def test_the_hybrid_lies_between_the_learners() -> None:
    a, b = weights(1)["w"], weights(2)["w"]
    mixed = hybrid([weights(1), weights(2)], [0.3, 0.7])["w"]
    torch.testing.assert_close(mixed, 0.3 * a + 0.7 * b)
    assert bool(((mixed >= torch.minimum(a, b)) & (mixed <= torch.maximum(a, b))).all())


def test_gamma_moves_from_nothing_to_the_hybrid() -> None:
    mixed = hybrid([weights(1), weights(2)], [0.5, 0.5])
    assert torch.equal(fuse(weights(1), mixed, 0)["w"], weights(1)["w"])
    assert torch.equal(fuse(weights(1), mixed, 1)["w"], fuse(weights(2), mixed, 1)["w"])


def test_ratios_are_shares() -> None:
    assert draw_ratios(4, "mean") == [0.25] * 4
    torch.manual_seed(0)
    drawn = torch.tensor([draw_ratios(3, "dirichlet") for _ in range(2000)])
    assert bool((drawn > 0).all())
    torch.testing.assert_close(drawn.sum(1), torch.ones(2000))
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3), rtol=0.05, atol=0)


def played(method: OKDPH, table: Table) -> dict[str, dict[str, Tensor]]:
    found = {}
    for turn in method.turns(table):
        found[turn.player] = turn.terms
        table.stepped(turn.player)
    return found


def mixed_network(table: Table) -> tuple[nn.Module, dict[str, Tensor]]:
    nets = [table.nets[name] for name in table.learners]
    values = hybrid([dict(net.named_parameters()) for net in nets], [1 / len(nets)] * len(nets))
    return nets[0], {name: value.detach().requires_grad_() for name, value in values.items()}


def test_a_learner_gets_its_share_of_the_hybrids_gradient(seat: Seat) -> None:
    method = OKDPH(hybrid=1.0, noise=0.0, reduction="uniform")
    table = seat(method, peers=1, teachers=0)
    net, values = mixed_network(table)
    told = torch.func.functional_call(net, values, (table.batch.image,))
    loss = torch.stack(dice_ce(told, table.batch.label)).sum()
    whole = torch.autograd.grad(loss, list(values.values()))
    terms = played(method, table)
    for name in table.learners:
        torch.testing.assert_close(terms[name]["hybrid"], loss)
        shares = torch.autograd.grad(terms[name]["hybrid"], list(table.nets[name].parameters()))
        for share, grad in zip(shares, whole, strict=True):
            torch.testing.assert_close(share, grad / 2, rtol=1e-4, atol=1e-6)


def test_as_released_the_hybrid_teaches_nobody(seat: Seat) -> None:
    method = OKDPH(hybrid_gradient=False)
    terms = played(method, seat(method, peers=1, teachers=0))
    assert not terms["student"]["hybrid"].requires_grad
    assert terms["student"]["ensemble"].requires_grad


def test_fusion_comes_every_interval_and_after_a_step_only(seat: Seat) -> None:
    method = OKDPH(gamma=1.0, interval=2)
    table = seat(method, peers=2, teachers=0)

    def apart() -> float:
        a, b = (torch.nn.utils.parameters_to_vector(table.nets[n].parameters()) for n in ("student", "peer2"))
        return float((a - b).abs().max().detach())

    for did_step, together in ((True, False), (False, False), (True, True)):
        for turn in method.turns(table):
            table.stepped(turn.player, did_step=did_step)
        assert (apart() < 1e-6) == together
    assert int(method.steps) == 2


def test_the_published_loss_is_zero_pull_at_the_ensemble() -> None:
    z, label = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    torch.testing.assert_close(okdph(z, z, z, label, omega=0.3), nn.functional.cross_entropy(z, label))


def test_what_cannot_be_mixed_is_refused(seat: Seat) -> None:
    with pytest.raises(UserError, match="only equal ones can be mixed"):
        check_alike([weights(1), {"w": torch.zeros(2)}])
    with pytest.raises(UserError, match="one each"):
        hybrid([weights(1)], [0.5, 0.5])
    method = OKDPH()
    with pytest.raises(UserError, match="peers: 1"):
        next(method.turns(seat(method, teachers=0)))


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"gamma": 2.0}, {"interval": 0}, {"mix": "max"}, {"noise": -1.0}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="okdph: "):
        OKDPH(**wrong)  # type: ignore[arg-type]
