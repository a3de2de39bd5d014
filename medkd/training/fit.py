"""The loop: deal a batch, play the method's turns, validate, keep the best."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medkd.errors import UserError
from medkd.methods.base import Sum
from medkd.networks.taps import Tapped
from medkd.training import checkpoint
from medkd.training.optim import optimiser, schedule
from medkd.training.round import STORED, NoTaps, Table
from medkd.training.settings import Settings
from medkd.training.tracking import Trackers
from medkd.types import Anatomy, Batch

Score = Callable[[nn.Module], Mapping[str, float]]
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Fit:
    """What a training left: the best student's weights (on the CPU), its score and step, and the last score."""

    state: dict[str, Tensor]
    best: float
    best_step: int
    last: float
    seconds: float


@dataclass
class _Player:
    parameters: list[nn.Parameter]
    optimiser: Any
    schedule: Any


class Trainer:
    """Plays a method's turns; it alone touches optimisers, precision, clipping and checkpoints.

    Args:
        learners: ``student`` first, then peers; trained in place.
        method: what is minimised.
        teachers: frozen networks; empty with cached targets.
        channels: by teacher, the student's class of each of its channels, where their classes differ; else None.
        settings: length, optimiser, precision.
        image_shape: ``(C, *S)`` of a training patch, for the dry run that finds the taps.
        folder: receives ``last.ckpt`` and ``log.jsonl``; a ``last.ckpt`` there is resumed.
    """

    def __init__(
        self,
        learners: Mapping[str, nn.Module],
        method: Sum,
        *,
        teachers: Sequence[nn.Module] = (),
        channels: Sequence[Sequence[int]] | None = None,
        settings: Settings,
        image_shape: Sequence[int],
        folder: Path,
    ) -> None:
        self.settings, self.method, self.folder = settings, method, folder
        accelerator, _, number = settings.device.partition(":")  # cuda:1
        devices = [int(number)] if number else 1
        self.fabric = Fabric(accelerator=accelerator, devices=devices, precision=settings.fabric_precision())  # type: ignore[arg-type]
        blank = torch.zeros(1, *image_shape)
        tapped = {name: Tapped(network, blank) for name, network in learners.items()}
        frozen = [Tapped(network.eval().requires_grad_(False), blank) for network in teachers]
        for network, names in [(tapped["student"], method.taps()), *((t, method.teacher_taps()) for t in frozen)]:
            for name in names:
                network.path(name)  # a tap that is not there is told before a method builds on it
        anatomy = tapped["student"].anatomy
        theirs = frozen[0].anatomy if frozen else Anatomy(NoTaps(STORED), anatomy.classes, anatomy.dims)
        # whatever classes a teacher has of its own, it is asked about the student's
        method.setup(anatomy, theirs if channels is None else replace(theirs, classes=anatomy.classes))
        extra = method.players()
        if taken := sorted(extra.keys() & learners.keys()):
            raise UserError(f"a method claims the player {taken[0]!r}, a network of the stage; rename the player")
        rates = method.rates()
        if strangers := sorted(rates.keys() - learners.keys() - extra.keys()):
            raise UserError(f"a method gives a learning rate to {strangers[0]!r}, who does not learn in this stage")
        owned = {id(p) for module in extra.values() for p in module.parameters()}
        own = [p for p in method.parameters() if id(p) not in owned]
        method.to(self.fabric.device)
        self.players: dict[str, _Player] = {}
        for name, module in {**learners, **extra}.items():
            parameters = [p for p in module.parameters() if p.requires_grad]
            parameters += own if name == "student" else []
            optim = optimiser(parameters, replace(settings, lr=settings.lr * rates.get(name, 1.0)))
            wrapped, optim = self.fabric.setup(module, optim)
            if name in tapped:
                tapped[name].run = wrapped
            self.players[name] = _Player(parameters, optim, schedule(optim, settings))
        for teacher in frozen:
            teacher.run = self.fabric.setup_module(teacher.network)
        self.student = learners["student"]
        self.learners = dict(learners)
        self.table = Table(tapped, frozen, method.taps(), method.teacher_taps(), channels)
        self.average: AveragedModel | None = None
        if settings.ema:
            mean = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.student, multi_avg_fn=mean, use_buffers=True)
        self.step = 0
        self.best, self.best_step, self.last = -1.0, 0, -1.0
        self.best_state: dict[str, Tensor] = {}

    def fit(
        self,
        batches: Callable[[int, int], Iterator[Batch]],
        score: Score,
        progress: Progress = lambda _: None,
        trackers: Trackers | None = None,
    ) -> Fit:
        """Train to the end and return the best student.

        Args:
            batches: ``(start, stop)`` -> the micro-batches of these indices.
            score: network in evaluation mode -> named numbers; ``dice`` decides what is best.
            progress: receives a dict a validation and every ``log_every`` steps.
            trackers: receive the lines of the log, and are closed at the end.

        Raises:
            UserError: a term is not finite (named with its cases), or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        began, settings = time.monotonic(), self.settings
        stream = batches(self.step * settings.accumulate, settings.steps * settings.accumulate)
        sums: dict[str, list[Tensor]] = {}
        with trackers or Trackers() as tracker, (self.folder / "log.jsonl").open("a") as log:

            def note(event: dict[str, Any]) -> None:
                log.write(json.dumps(event) + "\n")
                log.flush()
                progress({**event, "of": settings.steps})
                tracker.note(event)

            while self.step < settings.steps:
                for network in self.learners.values():
                    network.train()
                self.method.train()
                for micro in range(settings.accumulate):
                    terms = self._round(next(stream), last=micro == settings.accumulate - 1)
                    for name, value in terms.items():
                        sums.setdefault(name, []).append(value)
                self.step += 1
                if self.average is not None:
                    self.average.update_parameters(self.student)
                if self.step % settings.log_every == 0 or self.step == settings.steps:
                    means = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
                    sums.clear()
                    rate = self.players["student"].optimiser.param_groups[0]["lr"]
                    note({"step": self.step, "terms": means, "lr": rate})
                if self.step % settings.validate_every == 0 or self.step == settings.steps:
                    scores = self._validate(score)
                    note({"step": self.step, "scores": scores, "best": self.best, "seconds": time.monotonic() - began})
                    self._save()
        return Fit(self.best_state, self.best, self.best_step, self.last, time.monotonic() - began)

    def _round(self, batch: Batch, *, last: bool) -> dict[str, Tensor]:
        """Play one micro-batch; weights change on the last of a step."""
        accumulate, progress = self.settings.accumulate, self.step / self.settings.steps
        self.table.deal(batch.to(self.fabric.device), progress)
        seen: dict[str, Tensor] = {}
        moved: dict[str, _Player] = {}
        for turn in self.method.turns(self.table):
            player = self.players[turn.player]
            weighted = [self.method.weight(name, progress) * value for name, value in turn.terms.items()]
            loss = torch.stack(weighted).sum() / accumulate
            if not bool(torch.isfinite(loss)):
                bad = [name for name, value in turn.terms.items() if not bool(torch.isfinite(value))]
                raise UserError(
                    f"step {self.step + 1}: {', '.join(bad or turn.terms)} is not finite on cases "
                    f"{', '.join(batch.case)}; lower the learning rate or the weight, or look at these cases "
                    "with `medkd data inspect`"
                )
            if loss.requires_grad:
                self.fabric.backward(loss, inputs=player.parameters)
            if last and any(p.grad is not None for p in player.parameters):
                if self.settings.clip_norm is not None:
                    self.fabric.clip_gradients(
                        nn.Module(), player.optimiser, max_norm=self.settings.clip_norm, error_if_nonfinite=False
                    )
                player.optimiser.step()
                player.optimiser.zero_grad(set_to_none=True)
                moved[turn.player] = player
            self.table.stepped(turn.player, did_step=last)
            prefix = "" if turn.player == "student" else f"{turn.player}:"
            seen |= {prefix + name: value.detach() for name, value in turn.terms.items()}
        for player in moved.values():  # once a step, however many turns a player had
            player.schedule.step()
        return seen

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the student, its moving average, or what the method ships."""
        network = self.student if self.average is None else self.average.module
        return self.method.deploy(network)

    def _validate(self, score: Score) -> dict[str, float]:
        network = self.kept.eval()
        with torch.no_grad():
            scores = {name: float(value) for name, value in score(network).items()}
        self.last = scores["dice"]
        if not self.best_state or self.last > self.best or math.isnan(self.best):
            self.best, self.best_step = self.last, self.step
            self.best_state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return scores

    def _save(self) -> None:
        checkpoint.save(
            self.folder / "last.ckpt",
            {
                "step": self.step,
                "learners": {name: network.state_dict() for name, network in self.learners.items()},
                "method": self.method.state_dict(),
                "players": {
                    name: {"optimiser": p.optimiser.state_dict(), "schedule": p.schedule.state_dict()}
                    for name, p in self.players.items()
                },
                "average": None if self.average is None else self.average.state_dict(),
                "best": {"score": self.best, "step": self.best_step, "last": self.last, "state": self.best_state},
                "scaler": self.fabric.strategy.precision.state_dict(),
                "random": checkpoint.random_state(),
            },
        )

    def _resume(self) -> None:
        path = self.folder / "last.ckpt"
        if not path.is_file():
            (self.folder / "log.jsonl").unlink(missing_ok=True)
            return
        state = checkpoint.load(path)
        self.step = int(state["step"])
        for name, network in self.learners.items():
            network.load_state_dict(state["learners"][name])
        self.method.load_state_dict(state["method"])
        for name, player in self.players.items():
            player.optimiser.load_state_dict(state["players"][name]["optimiser"])
            player.schedule.load_state_dict(state["players"][name]["schedule"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        best = state["best"]
        self.best, self.best_step, self.last, self.best_state = best["score"], best["step"], best["last"], best["state"]
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        checkpoint.restore_random_state(state["random"])
        log = self.folder / "log.jsonl"
        if log.is_file():  # lines written after the checkpoint will be written again
            lines = [line for line in log.read_text().splitlines() if _step(line) <= self.step]
            log.write_text("".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    """Return the step of a line of the log; infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
