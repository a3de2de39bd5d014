"""The moving average of oneself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.self_distillation.mean_teacher import MeanTeacher, follow, probability_distance
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_is_the_formula() -> None:
    s, t = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    d = probability_distance(s, t)
    p, q = s.softmax(1), t.softmax(1)
    assert d[1, 2].item() == pytest.approx(sum(float((p[1, k, 2] - q[1, k, 2]) ** 2) for k in range(3)) / 3)
    torch.testing.assert_close(probability_distance(s, t, regions=True), ((s.sigmoid() - t.sigmoid()) ** 2).mean(1))
    assert torch.autograd.gradcheck(lambda x: probability_distance(x, t).mean(), s.requires_grad_())


def test_average_and_buffers_follow() -> None:
    a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(b.weight, 3.0)
    b.get_buffer("running_mean").fill_(7.0)
    follow(a, b, 0.9)
    torch.testing.assert_close(a.weight.detach(), torch.full((2,), 1.2))
    assert a.get_buffer("running_mean").tolist() == [7, 7]


def test_the_average_moves_after_steps_and_slower_as_they_add_up(seat: Seat) -> None:
    method = MeanTeacher(decay=0.6)
    table = seat(method, teachers=0)
    student = table.nets["student"]
    expected = vector(student)  # where it begins
    for did, decay in ((True, 1 / 2), (False, 1.0), (True, 0.6), (True, 0.6)):
        table.deal(table.batch, 0.0)
        for turn in method.turns(table):
            with torch.no_grad():
                for p in student.parameters():
                    p.add_(0.1)
            table.stepped(turn.player, did_step=did)
        expected = decay * expected + (1 - decay) * vector(student)
        torch.testing.assert_close(vector(method.average_of(student)), expected)
    assert method.steps == 3


def test_the_average_is_nobodys_parameter_and_gets_no_gradient(seat: Seat) -> None:
    method = MeanTeacher()
    table = seat(method, teachers=0)
    (turn,) = list(method.turns(table))
    assert not list(method.parameters())
    turn.terms["mean_teacher"].backward()
    average = method.average_of(table.nets["student"])
    assert all(p.grad is None for p in average.parameters())
    assert any(p.grad is not None for p in table.nets["student"].parameters())


def test_it_is_saved_and_restored_before_a_network_is_there(seat: Seat) -> None:
    method = MeanTeacher()
    table = seat(method, teachers=0)
    list(method.turns(table))
    state = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        for p in table.nets["student"].parameters():
            p.add_(1.0)
    again = MeanTeacher()
    again.load_state_dict(state)
    assert again.steps == method.steps == 0  # nothing has stepped yet
    torch.testing.assert_close(again.state_dict()["_extra_state"], state["_extra_state"])
    average = again.average_of(table.nets["student"])
    torch.testing.assert_close(vector(average), vector(method.average_of(table.nets["student"])))
    again.load_state_dict(state)  # and once more, now that there is one


def test_without_noise_the_first_round_is_agreement(seat: Seat) -> None:
    method = MeanTeacher(noise=0.0, distance="kl")
    (turn,) = list(method.turns(seat(method, teachers=0)))
    assert turn.terms["mean_teacher"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"noise": -1.0}, {"distance": "l1"}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="mean_teacher: "):
        MeanTeacher(**wrong)  # type: ignore[arg-type]
