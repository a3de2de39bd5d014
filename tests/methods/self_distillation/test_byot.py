"""Heads on the way, taught by the last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.ops import kl_map, label_to
from medkd.methods.self_distillation.byot import BYOT, byot, feature_term, soft_term
from medkd.methods.supervised import dice_ce
from medkd.training.round import Table
from medkd.types import IGNORE, View

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_distillation_it_is_deep_supervision(seat: Seat) -> None:
    method = BYOT(alpha=0.0, feature=0.0, heads=["enc1", "bottleneck"])
    table = seat(method, teachers=0)
    view = table.view("student")
    terms = method(view, None, table.batch)
    expected = torch.zeros(())
    for name, head in zip(method.at, method.heads, strict=True):
        q = head(view.taps[name])
        expected = expected + torch.stack(dice_ce(q, label_to(table.batch.label, q.shape[2:]))).sum()
    torch.testing.assert_close(terms["label"], expected)
    assert terms["kl"].item() == terms["feature"].item() == 0


def test_the_deepest_head_is_a_constant(seat: Seat) -> None:
    method = BYOT()
    table = seat(method, teachers=0)
    view = table.view("student")
    logits, last = view.logits.detach().requires_grad_(), view.taps["dec0"].detach().requires_grad_()
    terms = method(View(logits, {**view.taps, "dec0": last}), None, table.batch)
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is None
    assert last.grad is None
    assert all(p.grad is not None for p in method.parameters())


def test_equal_heads_have_nothing_to_learn() -> None:
    z = rand(2, 3, 4, 4)
    assert soft_term(z, z, 3.0).item() == pytest.approx(0, abs=1e-12)
    assert feature_term(z, z).item() == 0


def test_a_coarse_head_meets_the_mean_of_probabilities() -> None:
    s, t, tau = rand(1, 3, 2), rand(1, 3, 4, seed=1), 2.0
    p = (t / tau).softmax(1).unflatten(2, (2, 2)).mean(3)
    expected = tau**2 * (p * (p.log() - (s / tau).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(soft_term(s, t, tau), expected)
    torch.testing.assert_close(soft_term(t, 2 * t, tau), kl_map(t, 2 * t, tau).mean())
    assert torch.autograd.gradcheck(lambda x: soft_term(x, t, tau), s.requires_grad_())


def test_released_loss_by_hand() -> None:
    deep, shallow, label = rand(4, 3), rand(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    p, log_q = (deep / 3).softmax(1), (shallow / 3).log_softmax(1)
    soft = -sum(float(p[b, k] * log_q[b, k]) for b in range(4) for k in range(3)) / 4
    expected = F.cross_entropy(deep, label) + 0.7 * F.cross_entropy(shallow, label) + 0.3 * soft
    torch.testing.assert_close(byot([deep, shallow], label), expected)
    more = byot([deep, shallow], label, features=[(rand(4, 2), rand(4, 2, seed=1))], feature_weight=0.5)
    torch.testing.assert_close(more - expected, 0.5 * (rand(4, 2) - rand(4, 2, seed=1)).norm())


def test_unlabelled_cases_still_distil_and_the_student_is_shipped_alone(seat: Seat) -> None:
    method = BYOT()
    table = seat(method, teachers=0)
    table.batch.label.fill_(IGNORE)
    (turn,) = list(method.turns(table))
    assert turn.terms["label"].item() == 0
    assert turn.terms["kl"].item() > 0
    student = table.nets["student"]
    assert method.deploy(student) is student


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 2.0}, {"feature": -1.0}, {"temperature": 0.0}, {"heads": []}, {"heads": ["a", "a"]}, {"heads": "dec0"}],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="byot: "):
        BYOT(**wrong)  # type: ignore[arg-type]
