"""The reused head: what is matched, what is shipped, and that it comes back from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.methods.base import Sum, Weight
from medkd.methods.features.simkd import Reused, SimKD, beheaded, simkd
from medkd.methods.ops import resize_to
from medkd.networks.taps import Tapped
from medkd.networks.weights import ModelCard, load_network
from medkd.networks.zoo import build
from medkd.pipeline.steps.train import keep
from medkd.training.fit import Trainer
from medkd.training.settings import Settings
from medkd.types import IGNORE, Batch

STUDENTS: list[dict[str, Any]] = [
    {"name": "UNet", "channels": [4, 8, 8]},
    {"name": "DynUNet", "filters": [4, 8, 8, 8], "deep_supervision": True},
    {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
]
TEACHERS: list[dict[str, Any]] = [
    {"name": "UNet", "channels": [8, 16, 16], "num_res_units": 1},
    {"name": "DynUNet", "filters": [8, 16, 16]},
]


def network(spec: dict[str, Any], dims: int = 2) -> nn.Module:
    return build(spec, in_channels=1, classes=3, patch=(16,) * dims)


def pair(student: nn.Module, teacher: nn.Module, dims: int = 2, **options: Any) -> SimKD:
    blank = torch.zeros(1, 1, *(16,) * dims)
    method = SimKD(**options)
    method.setup(Tapped(student, blank).anatomy, Tapped(teacher.eval(), blank).anatomy)
    return method


def test_is_the_mean_of_squares(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4).requires_grad_(), rand(2, 3, 4, 4, seed=1).requires_grad_()
    loss = simkd(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(((s - t) ** 2).mean().item())
    assert t.grad is None
    assert torch.autograd.gradcheck(lambda x: simkd(x, t.detach()), s)
    trust = torch.ones(2, 1, 8, 8)
    trust[..., 4:] = 0
    torch.testing.assert_close(simkd(s, t, trust), simkd(s[..., :2], t[..., :2]))


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda spec: spec["name"])
@pytest.mark.parametrize("student", STUDENTS, ids=lambda spec: spec["name"])
@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_shipped_is_body_projector_and_head(
    student: dict[str, Any], teacher: dict[str, Any], dims: int
) -> None:
    ours, theirs = network(student, dims).eval(), network(teacher, dims).eval()
    method = pair(ours, theirs, dims).eval()
    image = torch.randn(2, 1, *(16,) * dims)
    shipped = method.deploy(ours).eval()
    assert isinstance(shipped, Reused)
    with torch.no_grad():
        logits = shipped(image)
        assert logits.shape == (2, 3, *(16,) * dims)
        features = Tapped(ours, image[:1])(image, ("dec0",)).taps["dec0"]
        wanted = Tapped(theirs, image[:1])(image, ("dec0",)).taps["dec0"].shape[2:]
        if features.shape[2] > wanted[0]:  # finer features are pooled before the projector, coarser refined behind it
            features = resize_to(features, wanted)
        torch.testing.assert_close(logits, shipped.head(resize_to(method.projector(features), wanted)))
    assert shipped.spec["student"]["name"] == student["name"]


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda spec: spec["name"])
def test_perfect_features_give_the_teachers_answer(teacher: dict[str, Any]) -> None:
    theirs = network(teacher).eval()
    method = pair(theirs, theirs)
    method.projector = nn.Identity()
    image = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(method.deploy(theirs).eval()(image), theirs(image), rtol=0, atol=0)


def test_taking_the_head_off_leaves_the_network_alone() -> None:
    whole = network(STUDENTS[0]).eval()
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        before = whole(image)
        body = beheaded(whole, "model.2")
        assert body(image).shape == (1, 8, 8, 8)
        torch.testing.assert_close(whole(image), before, rtol=0, atol=0)
    assert {id(p) for p in body.parameters()} < {id(p) for p in whole.parameters()}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_trained_kept_and_loaded_again(tmp_path: Path, ema: float | None) -> None:
    torch.manual_seed(0)
    student, teacher = network(STUDENTS[0]), network(TEACHERS[0])
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    method = Sum({"simkd": (SimKD(), Weight.constant(1))})
    settings = Settings(steps=3, validate_every=1, lr=0.01, device="cpu", precision="fp32", ema=ema)
    trainer = Trainer(
        {"student": student}, method, teachers=[teacher], settings=settings, image_shape=(1, 16, 16), folder=tmp_path
    )
    image = torch.randn(2, 1, 16, 16)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for _ in range(start, stop):
            yield Batch(image, torch.full((2, 16, 16), IGNORE), ("a", "b"), (1.0, 1.0))

    shown: list[torch.Tensor] = []

    def score(net: nn.Module) -> dict[str, float]:
        shown.append(net(image))
        return {"dice": float(len(shown))}

    fit = trainer.fit(batches, score)
    card = ModelCard({"name": "UNet"}, 1, 3, {"background": 0, "a": 1, "b": 2}, {"patch": [16, 16]})
    keep(trainer, fit, card, tmp_path)
    loaded, read = load_network(tmp_path)
    assert read.network["name"] == "medkd.methods.features.simkd.Reused"
    assert isinstance(loaded, Reused)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), shown[-1], rtol=1e-5, atol=1e-6)
    assert (shown[-1] - shown[0]).abs().max() > 1e-4
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in teacher.parameters())
    head = loaded.head.state_dict()
    assert head
    assert all(torch.equal(tensor, before[f"model.2.{name}"]) for name, tensor in head.items())


def test_a_student_without_such_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="student makes no logits from 'bottleneck' alone; it does from dec0"):
        pair(network(STUDENTS[0]), network(TEACHERS[0]), tap="bottleneck")


def test_refuses_what_it_cannot_do() -> None:
    for wrong in ({"squeeze": 0}, {"last": "tanh"}, {"norm": "layer"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SimKD(**wrong)
    with pytest.raises(UserError, match="met no teacher"):
        SimKD().deploy(nn.Identity())


def test_labels_never_enter(shown: Any, anatomy: Any) -> None:
    method = SimKD()
    method.setup(anatomy({"dec0": 3}), anatomy({"dec0": 4}))
    s, t, _ = shown(torch.randn(1, 3, 4, 4).half(), torch.randn(1, 4, 4, 4).half(), tap="dec0")
    assert torch.isfinite(method(s, t, SimpleNamespace())["simkd"])
