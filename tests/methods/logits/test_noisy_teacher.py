"""Regression to perturbed logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.noisy_teacher import NoisyTeacher, draw_noise, noisy_teacher, perturb
from medkd.methods.ops import kl_map
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def unknown(s: Tensor, *, regions: bool = False) -> Batch:
    return Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE), regions=regions)


def test_is_the_formula() -> None:
    s, t, noise = rand(2, 3, 4), rand(2, 3, 4, seed=1), rand(2, 3, 1, seed=2)
    total = sum(
        float(((1 + noise[b, k, 0]) * t[b, k, n] - s[b, k, n]) ** 2)
        for b in range(2)
        for k in range(3)
        for n in range(4)
    )
    assert noisy_teacher(s, t, noise).item() == pytest.approx(total / 2 / 24, rel=1e-10)


def test_gradient_is_the_students_only() -> None:
    s, t, noise = rand(2, 3, 4).requires_grad_(), rand(2, 3, 4, seed=1).requires_grad_(), rand(2, 3, 1, seed=2)
    assert torch.autograd.gradcheck(lambda x: noisy_teacher(x, t, noise), s)
    noisy_teacher(s, t, noise).backward()
    assert t.grad is None


@pytest.mark.parametrize("quiet", [{"probability": 0.0}, {"sigma": 0.0}])
def test_without_noise_it_is_regression(quiet: dict[str, float]) -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    loss = NoisyTeacher(reduction="uniform", **quiet)(View(s), View(t), unknown(s, regions=True))["noisy_teacher"]
    torch.testing.assert_close(loss, 0.5 * (s - t).square().mean())


def test_noise_leaves_the_mean_and_adds_its_variance_to_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = rand(1, 3, 2), rand(1, 3, 2, seed=1)
    many = t.expand(40000, -1, -1)
    noise = draw_noise(many, 0.5, 0.4, generator=generator)
    noisy = perturb(many, noise)
    torch.testing.assert_close(noisy.mean(0), t[0], rtol=0.01, atol=0.01)
    extra = noisy_teacher(s.expand_as(many), many, noise) - noisy_teacher(s, t, torch.zeros(1))
    assert extra.item() == pytest.approx(0.5 * 0.4**2 * t.square().mean().item() / 2, rel=0.05)


def test_draws_repeat_with_a_seed_and_are_constant_over_space() -> None:
    t = rand(4, 3, 6, 5)
    one, two = (draw_noise(t, 1.0, 0.3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (4, 3, 1, 1)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert draw_noise(t, 1.0, 0.3, shared=True).shape == (4, 1, 1, 1)


@pytest.mark.parametrize("space", [(9,), (9, 7), (9, 7, 2)])
def test_a_grid_makes_neighbours_alike(space: tuple[int, ...]) -> None:
    noise = draw_noise(rand(8, 3, *space), 1.0, 1.0, grid=3, generator=torch.Generator().manual_seed(1))
    assert noise.shape == (8, 3, *space)
    step = (noise.narrow(2, 1, 8) - noise.narrow(2, 0, 8)).std()
    assert 0 < step < 0.5 * noise.std()


def test_samples_are_chosen_whole() -> None:
    noise = draw_noise(rand(400, 3, 2), 0.25, 1.0, generator=torch.Generator().manual_seed(1))
    quiet = (noise == 0).flatten(1)
    assert (quiet.all(1) == quiet.any(1)).all()
    assert quiet.all(1).double().mean().item() == pytest.approx(0.75, abs=0.06)


def test_stored_targets_are_as_good_as_logits() -> None:
    s, t = rand(2, 3, 5), rand(2, 3, 5, seed=1)
    method, losses = NoisyTeacher(), []
    for shown in (t, torch.log_softmax(t, 1)):
        torch.manual_seed(0)
        losses.append(method(View(s), View(shown), unknown(s))["noisy_teacher"])
    torch.testing.assert_close(*losses)


def test_kl_of_a_quiet_teacher_is_kd() -> None:
    s, t = rand(2, 3, 5), rand(2, 3, 5, seed=1)
    method = NoisyTeacher(match="kl", temperature=3.0, sigma=0, reduction="uniform")
    torch.testing.assert_close(method(View(s), View(t), unknown(s))["noisy_teacher"], kl_map(s, t, 3.0).mean())


def test_additive_noise_moves_zero_logits() -> None:
    t = torch.zeros(1, 2, 3)
    assert perturb(t, torch.ones(1)).abs().max() == 0
    assert perturb(t, torch.ones(1), additive=True).min() == 1


def test_refuses_what_it_cannot_do() -> None:
    for wrong in (
        {"probability": 2}, {"sigma": -1}, {"grid": 0}, {"match": "l1"}, {"temperature": 0}, {"reduction": "sum"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(wrong))):
            NoisyTeacher(**wrong)
