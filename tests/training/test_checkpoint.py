"""A training that is interrupted ends where it would have ended, to the last bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.data.patches import Patches, Sampling, stream
from medkd.data.store import Store
from medkd.data.transforms import Augment
from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import KD
from medkd.methods.supervised import Supervised
from medkd.networks.zoo import build
from medkd.training import checkpoint
from medkd.types import Batch, Round, Turn, Turns


class Interrupted(Exception):
    """What a power cut is to a process."""


class Critic(Method):
    """A second player with dropout, and a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.critic = nn.Sequential(nn.Conv3d(2, 4, 1), nn.Dropout3d(0.5), nn.Conv3d(4, 1, 1))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("bank", torch.zeros(3))

    def players(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def turns(self, r: Round) -> Turns:
        yield Turn("critic", {"c": self.critic(r.view("student").logits.detach()).mean()})
        logits = r.view("student").logits
        self.bank = self.bank.roll(1) * 0.9 + logits.detach().mean()
        yield Turn("student", {"s": self.scale * self.critic(logits).mean() + (self.bank.sum() * logits).mean()})


def cut_at(index: int, batches: Any) -> Any:
    """Return ``batches`` that break off before this one."""

    def broken(start: int, stop: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(start, stop), start):
            if i == index:
                raise Interrupted
            yield batch

    return broken


def augmented(folder: Path) -> Any:
    """Return batches of augmented patches, as a real training draws them."""
    store = Store(folder)
    for case in ("a", "b"):
        image = np.random.default_rng(ord(case)).normal(size=(1, 12, 12, 12))
        store.add(case, image, (image[0] > 1).astype(np.int64))
    store.close()
    sampling = Sampling(("a", "b"), (), (8, 8, 8), 2, (1.0, 1.0, 1.0), seed=1)
    patches = Patches(store, sampling, Augment("default", (8, 8, 8), mirror_axes=(0, 1, 2)))
    return lambda start, stop: stream(patches, start, stop)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema": 0.9},
    "sgd": {"optimiser": "sgd", "schedule": "cosine"},
    "accumulate": {"accumulate": 2},
}


@pytest.mark.parametrize("kind", [*OPTIONS, "deep", "augmented"])
def test_goes_on_as_if_nothing_had_happened(run: Any, tmp_path: Path, kind: str) -> None:
    options = OPTIONS.get(kind, {})
    batches = augmented(tmp_path / "store") if kind == "augmented" else run.batches

    def start(folder: str) -> Any:
        if kind == "deep":
            spec = {"name": "DynUNet", "filters": [4, 4, 8, 8], "deep_supervision": True, "dropout": 0.3}
            torch.manual_seed(0)
            student = build(spec, in_channels=1, classes=2, patch=run.size, strides=[(2, 2, 2), (2, 2, 2), (1, 1, 1)])
        else:
            student = run.tiny(dropout=0.5, norm=True)
        method = run.total(sup=Supervised(), kd=KD(), critic=Critic())
        torch.manual_seed(5)
        return run.trainer(student, method, teachers=[run.tiny(1)], folder=tmp_path / folder, **options)

    whole = start("whole")
    expected = run.fit(whole, batches)
    broken = start("broken")
    with pytest.raises(Interrupted):
        run.fit(broken, cut_at(4 * options.get("accumulate", 1), batches))
    assert broken.step == 4
    resumed = start("broken")
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002  # MONAI draws from it
    found = run.fit(resumed, batches)
    assert resumed.step == 6
    for one, two in ((whole.learners["student"], resumed.learners["student"]), (whole.method, resumed.method)):
        differing = [n for n, v in one.state_dict().items() if not torch.equal(v, two.state_dict()[n])]
        assert differing == []
    assert all(torch.equal(value, found.state[name]) for name, value in expected.state.items())
    assert (expected.best, expected.best_step, expected.last) == (found.best, found.best_step, found.last)

    def lines(folder: str) -> list[dict[str, Any]]:
        read = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in read]

    assert lines("whole") == lines("broken")


def test_a_finished_training_is_only_read(run: Any) -> None:
    student = run.tiny()
    first = run.fit(run.trainer(student, run.total(sup=Supervised())))

    def none(start: int, stop: int) -> Iterator[Batch]:
        assert start == stop
        return iter(())

    again = run.fit(run.trainer(run.tiny(3), run.total(sup=Supervised())), none)
    assert (again.best, again.best_step, again.last) == (first.best, first.best_step, first.last)
    assert all(torch.equal(value, again.state[name]) for name, value in first.state.items())


@pytest.mark.parametrize("tail", ["", '{"step": 4, "terms": {"a": 1}', '{"step": 4, "te', "[1]", "{}"])
def test_a_log_that_was_cut_off_is_mended(run: Any, tail: str) -> None:
    with pytest.raises(Interrupted):
        run.fit(run.trainer(run.tiny(), run.total(sup=Supervised())), cut_at(4, run.batches))
    log = run.folder / "log.jsonl"
    log.write_text(log.read_text() + tail)
    run.fit(run.trainer(run.tiny(), run.total(sup=Supervised())))
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]


def test_without_a_checkpoint_an_old_log_goes(run: Any) -> None:
    run.folder.mkdir()
    (run.folder / "log.jsonl").write_text('{"step": 1}\n')
    run.fit(run.trainer(run.tiny(), run.total(sup=Supervised())))
    steps = [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_a_damaged_checkpoint_is_told(run: Any, damage: str) -> None:
    run.fit(run.trainer(run.tiny(), run.total(sup=Supervised())))
    path = run.folder / "last.ckpt"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes({"empty": b"", "cut": data[:middle], "text": b"no" * 99, "flipped": data[:64]}[damage])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged .*; delete it to train this stage anew"):
        run.fit(run.trainer(run.tiny(), run.total(sup=Supervised())))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"step": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "last.ckpt")
    assert not (tmp_path / "executed").exists()


def test_something_else_is_told(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="holds no training state"):
        checkpoint.load(tmp_path / "last.ckpt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_is_told_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"step": 1})

    def full(state: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot be written .*free disk space"):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_generator_goes_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        legacy = np.random.normal()  # noqa: NPY002  # an odd number of these leaves one in store
        return (legacy, random.gauss(0, 1), random.random(), float(torch.rand(())), float(torch.randn(())))

    draw()
    checkpoint.save(tmp_path / "x", {"random": checkpoint.random_state()})
    expected = [draw() for _ in range(3)]
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "x")["random"])
    assert [draw() for _ in range(3)] == expected
