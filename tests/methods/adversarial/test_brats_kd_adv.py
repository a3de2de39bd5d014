"""Clean and perturbed volumes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medkd.errors import UserError
from medkd.methods.adversarial.brats_kd_adv import BratsKDAdv, perturbation, supervised
from medkd.training.round import Table
from medkd.types import IGNORE

Seat = Callable[..., Table]


def terms(method: BratsKDAdv, table: Table) -> dict[str, torch.Tensor]:
    (turn,) = list(method.turns(table))
    return turn.terms


def test_no_step_is_the_clean_image(seat: Seat) -> None:
    method = BratsKDAdv(epsilon=0.0, kd=1.0, adversarial=1.0)
    table = seat(method)
    found = terms(method, table)
    torch.testing.assert_close(found["adversarial"], supervised(table.view("student"), table.batch))
    torch.testing.assert_close(found["adversarial_kd"], found["kd"])


def test_the_step_is_epsilon_where_it_matters_and_raises_the_loss() -> None:
    x = torch.tensor([[[1.0, -2.0, 3.0]]], requires_grad=True)
    delta = perturbation(x, (x[..., :2] ** 2).sum(), 0.1)
    assert delta.tolist() == [[[pytest.approx(0.1), pytest.approx(-0.1), 0.0]]]


def test_it_is_harder_than_the_clean_image(seat: Seat) -> None:
    method = BratsKDAdv(epsilon=0.05, adversarial=1.0)
    table = seat(method)
    assert terms(method, table)["adversarial"] > supervised(table.view("student"), table.batch)
    assert not table.batch.image.requires_grad


def test_one_teacher_many_times_is_one_teacher(seat: Seat) -> None:
    method = BratsKDAdv()
    one, table = terms(method, seat(method)), seat(method, teachers=2)
    table._teachers["teacher1"] = table._teachers["teacher0"]
    for name, value in terms(method, table).items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)


def test_gradients(seat: Seat) -> None:
    method = BratsKDAdv()
    table = seat(method)
    torch.stack(list(terms(method, table).values())).sum().backward()
    assert all(p.grad is None for p in table.nets["teacher0"].parameters())
    assert any(p.grad is not None for p in table.nets["student"].parameters())


def test_without_labels_there_is_nothing_to_fear(seat: Seat) -> None:
    method = BratsKDAdv(kd=1.0, adversarial=1.0, epsilon=1.0)
    table = seat(method)
    table.batch.label.fill_(IGNORE)
    found = terms(method, table)
    assert found["adversarial"].item() == 0
    torch.testing.assert_close(found["adversarial_kd"], found["kd"])


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"epsilon": -1.0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="brats_kd_adv: "):
        BratsKDAdv(**wrong)  # type: ignore[arg-type]
