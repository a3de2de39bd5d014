"""Critics between peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medkd.errors import UserError
from medkd.methods.online.afd_online_adversarial import AFDOnlineAdversarial, critic_loss, fool_loss
from medkd.methods.online.dml import DML
from medkd.training.round import Table

Seat = Callable[..., Table]


def test_the_best_critic_is_the_peers_share_of_the_density() -> None:
    own, peer = 0.3, 0.7  # densities of the two at one point
    best = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([best], max_iter=50)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = peer * (1 - best) ** 2 + own * best**2
        loss.backward()
        return loss

    optimiser.step(closure)
    assert best.item() == pytest.approx(peer / (peer + own), abs=1e-6)
    x = torch.full((4, 1), 0.25)
    assert critic_loss(x, 2 * x).item() == pytest.approx(0.5**2 + 0.25**2)
    assert fool_loss(x).item() == pytest.approx(0.75**2)


def reached(terms: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    loss = torch.stack(list(terms.values())).sum()
    grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(g is not None and bool((g != 0).any()) for g in grads)


def test_players_are_kept_apart(seat: Seat) -> None:
    method = AFDOnlineAdversarial(depth=1, peers=2)
    table = seat(method, peers=2, teachers=0)
    order = []
    for turn in method.turns(table):
        order.append(turn.player)
        networks = {name: table.nets[name] for name in table.learners} | method.players()
        touched = {name for name, net in networks.items() if reached(dict(turn.terms), net)}
        if turn.player in table.learners:
            # a critic lies between, and the trainer asks for the learner's gradients only
            assert touched == {turn.player, f"critic_{turn.player}"}
        else:
            assert touched == {turn.player}
        table.stepped(turn.player)
    assert order == [*table.learners, *(f"critic_{name}" for name in table.learners)]


def test_in_a_circle_each_learns_from_the_one_before(seat: Seat) -> None:
    method = AFDOnlineAdversarial(depth=1, peers=2, reduction="uniform", temperature=1.0)
    table = seat(method, peers=2, teachers=0)
    views = {name: table.view(name).detach() for name in table.learners}
    before = {"student": "peer2", "peer1": "student", "peer2": "peer1"}
    pair = DML(reduction="uniform")
    for turn in method.turns(table):
        if turn.player in before:
            expected = pair(views[turn.player], views[before[turn.player]], table.batch)["dml"]
            torch.testing.assert_close(turn.terms["mimic"].detach(), expected)
        table.stepped(turn.player)


def test_without_the_critics_it_is_mutual_learning(seat: Seat) -> None:
    method, plain = AFDOnlineAdversarial(depth=1, adversarial=0.0), DML(temperature=3.0)
    table = seat(method, peers=1, teachers=0)
    ours = [t.terms["mimic"] + t.terms["fool"] for t in method.turns(table) if "mimic" in t.terms]
    table = seat(plain, peers=1, teachers=0)
    for a, b in zip(ours, plain.turns(table), strict=True):
        torch.testing.assert_close(a, b.terms["dml"])


@pytest.mark.parametrize("size", [(2, 3), (9, 5, 4), (5,)])
def test_bottlenecks_of_one_voxel(seat: Seat, size: tuple[int, ...]) -> None:
    method = AFDOnlineAdversarial(depth=3)
    for turn in method.turns(seat(method, peers=1, teachers=0, size=size)):
        assert all(bool(torch.isfinite(v)) for v in turn.terms.values())


def test_nonsense_is_refused(seat: Seat) -> None:
    method = AFDOnlineAdversarial(peers=2)
    with pytest.raises(UserError, match="give both the same number"):
        next(method.turns(seat(method, peers=1, teachers=0)))
    with pytest.raises(UserError, match="peers: 1"):
        next(method.turns(seat(method, teachers=0)))
    for wrong in ({"temperature": 0.0}, {"adversarial": -1.0}, {"peers": 0}):
        with pytest.raises(UserError, match="afd_online_adversarial: "):
            AFDOnlineAdversarial(**wrong)  # type: ignore[arg-type]
