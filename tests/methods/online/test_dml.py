"""Learners that teach each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.online.dml import DML, dml
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_is_the_formula() -> None:
    s, peer, tau = rand(2, 3, 4), rand(2, 3, 4, seed=1), 2.0
    p, q = (peer / tau).softmax(1).numpy(), (s / tau).softmax(1).numpy()
    total = sum(
        p[b, k, n] * float(torch.tensor(p[b, k, n] / q[b, k, n]).log())
        for b in range(2)
        for k in range(3)
        for n in range(4)
    )
    assert dml(s, peer, tau).item() == pytest.approx(tau**2 * total / 8, rel=1e-10)


def test_gradient_reaches_the_peer_only_where_asked() -> None:
    s, peer = rand(2, 3, 2).requires_grad_(), rand(2, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dml(x, peer), s)
    assert torch.autograd.gradcheck(lambda x, y: dml(x, y, detach=False), (s, peer))
    dml(s, peer).backward()
    assert peer.grad is None


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_every_learner_has_a_turn_and_hears_the_mean_of_the_others(seat: Seat, peers: int) -> None:
    method = DML(reduction="uniform")
    table = seat(method, peers=peers, teachers=0)
    shown = {name: table.view(name).logits.detach() for name in table.learners}
    turns = []
    for turn in method.turns(table):
        others = [shown[name] for name in table.learners if name != turn.player]
        expected = torch.stack([dml(shown[turn.player], other) for other in others]).mean()
        torch.testing.assert_close(turn.terms["dml"].detach(), expected)
        nets = {name: list(table.nets[name].parameters()) for name in table.learners}
        for name, parameters in nets.items():
            grads = torch.autograd.grad(turn.terms["dml"], parameters, retain_graph=True, allow_unused=True)
            assert any(g is not None for g in grads) == (name == turn.player)
        turns.append(turn.player)
        table.stepped(turn.player)
    assert tuple(turns) == table.learners


def test_in_turns_peers_are_asked_again_once_they_have_moved(seat: Seat) -> None:
    for alternate in (False, True):
        method = DML(alternate=alternate, reduction="uniform")
        table = seat(method, peers=1, teachers=0)
        before = table.view("student").logits.detach()
        turns = method.turns(table)
        next(turns)
        with torch.no_grad():
            for p in table.nets["student"].parameters():
                p.mul_(1.5)
        table.stepped("student")
        second = next(turns)
        with torch.no_grad():
            seen = table.view("student", table.batch.image).logits if alternate else before
        torch.testing.assert_close(second.terms["dml"], dml(table.view("peer1").logits, seen))


def test_alone_is_refused(seat: Seat) -> None:
    method = DML()
    with pytest.raises(UserError, match="add `peers: 1`"):
        next(method.turns(seat(method, teachers=0)))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="dml: "):
        DML(**wrong)  # type: ignore[arg-type]
