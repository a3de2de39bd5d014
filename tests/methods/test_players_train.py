"""Methods with players, peers, averages and dreams, in the real loop: they train, and go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.conformance import toys
from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Weight
from medkd.training.fit import Fit, Trainer
from medkd.training.round import Table
from medkd.training.settings import Settings
from medkd.types import IGNORE, Batch

DREAM: dict[str, object] = {"patch": (8, 8), "channels": 6, "dream_steps": 3, "inner": 2, "bank": 2, "compete": 0.1}
ALL: dict[str, dict[str, Any]] = {
    "adaptive_distillation": {},
    "afd_attention_transfer": {},
    "afd_online_adversarial": {"depth": 1},
    "bgkd": {},
    "brats_kd_adv": {},
    "byot": {},
    "deepinversion": DREAM,
    "dml": {},
    "meal": {},
    "mean_teacher": {},
    "okdph": {"interval": 2},
    "robust_mtkd": {"hard": 1.0},
    "skd": {},
    "zipf_ls": {},
}
ONLINE = ("afd_online_adversarial", "dml", "okdph")


def trainer(key: str, folder: Path, *, accumulate: int = 1) -> Trainer:
    torch.manual_seed(0)
    specs: list[tuple[str, str, dict[str, Any], Weight]] = [
        (name, name, arguments, Weight.constant(1)) for name, arguments in (("supervised", {}), (key, ALL[key]))
    ]
    learners = {"student": toys.student(2, 3)}
    if key in ONLINE:
        learners["peer1"] = toys.student(2, 3, seed=1)
    teachers = [toys.teacher(2, 3, seed=i) for i in range(2 if key in ("meal", "robust_mtkd") else 1)]
    method = catalogue.combine(specs)
    return Trainer(
        learners,
        method,
        teachers=[] if key in ONLINE else teachers,
        settings=Settings(steps=4, validate_every=2, warmup=0.0, lr=0.01, accumulate=accumulate, device="cpu"),
        image_shape=(6, 8, 8),
        folder=folder,
    )


def batches(start: int, stop: int) -> Iterator[Batch]:
    return (toys.scene((8, 8), seed=i) for i in range(start, stop))


def run(made: Trainer, stop: int = 4) -> Fit:
    """Train; a training that shall stop early is interrupted after its checkpoint."""

    def interrupted(event: dict[str, Any]) -> None:
        if event["step"] > stop:
            raise KeyboardInterrupt

    return made.fit(batches, lambda _: {"dice": 0.5}, interrupted)


@pytest.mark.parametrize("key", ALL)
def test_it_trains_and_goes_on_as_if_nothing_had_happened(key: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = trainer(key, tmp_path / "whole")
    torch.manual_seed(5)
    run(whole)
    first = trainer(key, tmp_path / "parts")
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        run(first, stop=2)
    second = trainer(key, tmp_path / "parts")
    torch.manual_seed(9)  # the checkpoint knows better
    run(second)
    for name, network in whole.learners.items():
        for a, b in zip(network.state_dict().values(), second.learners[name].state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name, state in whole.method.state_dict().items():
        torch.testing.assert_close(state, second.method.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", ["skd", "okdph", "mean_teacher", "deepinversion"])
def test_micro_batches_add_up_to_a_step(key: str, tmp_path: Path) -> None:
    made = trainer(key, tmp_path, accumulate=2)
    run(made)
    assert made.step == 4
    if key == "mean_teacher":
        assert made.method.methods[key].steps == 4
    if key == "okdph":
        assert int(made.method.get_buffer("methods.okdph.steps")) == 4


def test_a_teacher_without_batch_statistics_is_refused(tmp_path: Path) -> None:
    made = trainer("deepinversion", tmp_path)
    for module in made.table.nets["teacher0"].modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = None
    with pytest.raises(UserError, match="norm: batch"):
        run(made)


@pytest.mark.parametrize(
    ("key", "term"), [("afd_online_adversarial", "mimic"), ("dml", "dml"), ("mean_teacher", "mean_teacher")]
)
def test_what_lies_beyond_the_volume_is_not_agreed_on(seat: Callable[..., Table], key: str, term: str) -> None:
    method = catalogue.make(key, ALL[key] | {"reduction": "uniform"})
    table = seat(method, peers=1, teachers=0)
    assert table.batch.trust is not None
    trust = table.batch.trust.clone()
    trust[:, :, :3] = 0
    table.deal(replace(table.batch, label=torch.full_like(table.batch.label, IGNORE), trust=trust), 0.0)
    turn = next(method.turns(table))
    (grad,) = torch.autograd.grad(turn.terms[term], table.view("student").logits)
    assert bool((grad[:, :, :3] == 0).all())
    assert bool((grad[:, :, 3:] != 0).any())
