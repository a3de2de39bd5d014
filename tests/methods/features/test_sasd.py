"""Attention of the teacher, and context of the student's own deepest stage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.features.sasd import SASD, attention_kl, context_distance, log_attention
from medkd.types import Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_attention(x: list[list[float]], tau: float) -> list[list[float]]:
    found = []
    for q in x:
        e = [math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / tau) for k in x]
        found.append([v / sum(e) for v in e])
    return found


def slow(s: Tensor, t: Tensor, tau: float) -> float:
    total = weights = 0.0
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        for p, q in zip(slow_attention(b, tau), slow_attention(a, tau), strict=True):
            kl = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
            w = 1 - sum(x * y for x, y in zip(p, q, strict=True)) / math.hypot(*p) / math.hypot(*q)
            total, weights = total + w * kl, weights + w
    return total / weights


def test_attention_is_the_formula() -> None:
    s, t = rand(2, 5, 3), rand(2, 5, 4, seed=1)
    ours = attention_kl(log_attention(s, s, 0.7), log_attention(t, t, 0.7))
    assert ours.item() == pytest.approx(slow(s, t, 0.7), rel=1e-6)


def test_gradients() -> None:
    t = log_attention(rand(2, 4, 3, seed=1), rand(2, 4, 3, seed=1))
    x = rand(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_kl(log_attention(s, s), t, adaptive=False), x)
    assert torch.autograd.gradcheck(lambda s: context_distance(s, rand(2, 4, 5, seed=2)), x)


def test_a_common_rotation_of_queries_and_keys_does_not_matter() -> None:
    q, k = rand(2, 5, 3), rand(2, 5, 3, seed=1)
    turn, _ = torch.linalg.qr(rand(3, 3, seed=2))
    torch.testing.assert_close(log_attention(q @ turn, k @ turn), log_attention(q, k))


def test_equal_keys_are_attended_to_equally() -> None:
    a = log_attention(rand(1, 6, 3), torch.ones(1, 6, 3, dtype=torch.float64)).exp()
    torch.testing.assert_close(a, torch.full_like(a, 1 / 6))
    hidden = torch.ones(1, 6)
    hidden[0, 4:] = 0
    assert log_attention(rand(1, 6, 3), rand(1, 6, 3), weight=hidden).exp()[..., 4:].sum() == 0


def test_context_by_hand_and_for_constants() -> None:
    deep, shallow = torch.eye(2).unsqueeze(0), torch.ones(1, 2, 3)
    assert context_distance(shallow, deep).item() == pytest.approx(0.5)  # two of four cosines are 1, not 0
    assert context_distance(shallow, 5 * torch.ones(1, 2, 7)).item() == pytest.approx(0, abs=1e-10)


def scene() -> tuple[View, View, Batch]:
    logits = torch.zeros(2, 3, 8, 8)
    taps = {"enc0": rand(2, 3, 8, 8).requires_grad_(), "bottleneck": rand(2, 4, 4, 4, seed=1).requires_grad_()}
    return (
        View(logits, taps),
        View(logits, {"bottleneck": rand(2, 6, 2, 2, seed=2)}),
        Batch(logits[:, :1], logits[:, 0]),
    )


def test_the_deepest_stage_is_taught_by_the_teacher_alone() -> None:
    s, t, batch = scene()
    terms = SASD()(s, t, batch)
    terms["context"].backward(retain_graph=True)
    assert s.taps["bottleneck"].grad is None or s.taps["bottleneck"].grad.abs().sum() == 0
    assert s.taps["enc0"].grad is not None
    assert s.taps["enc0"].grad.abs().sum() > 0
    terms["attention"].backward()
    assert s.taps["bottleneck"].grad is not None
    assert s.taps["bottleneck"].grad.abs().sum() > 0


def test_equal_attention_costs_nothing() -> None:
    s, t, batch = scene()
    same = View(t.logits, {"enc0": s.taps["enc0"], "bottleneck": -3 * t.taps["bottleneck"]})
    assert SASD()(same, t, batch)["attention"].item() == pytest.approx(0, abs=1e-12)


def test_weights_and_stages() -> None:
    s, t, batch = scene()
    one, two = SASD(context=1.0)(s, t, batch), SASD(context=2.0, attention=3.0)(s, t, batch)
    torch.testing.assert_close(two["context"], 2 * one["context"])
    torch.testing.assert_close(two["attention"], 3 * one["attention"])
    method = SASD(shallow="enc0", teacher_tap="x")
    assert method.taps() == ("bottleneck", "enc0")
    assert method.teacher_taps() == ("x",)


@pytest.mark.parametrize("wrong", [{"attention": -1}, {"temperature": 0}, {"nodes": 0}])
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="sasd: "):
        SASD(**wrong)  # type: ignore[arg-type]
