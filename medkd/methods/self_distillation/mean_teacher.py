"""Mean teacher: the student agrees with the moving average of itself."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import binary_kl_map, first_head, full, kl_map, weighted_mean
from medkd.types import Batch, Round, Terms, Turn, Turns, View

DISTANCES = ("mse", "kl")


@final
class MeanTeacher(Method):
    r"""On every voxel, labelled or not, agree with the moving average of one's own weights, shown a noisier image.

    .. math:: L = \frac{\sum_n w_n \frac{1}{K} \| \sigma(f(x; \theta))_n - \sigma(f(x + \xi; \bar\theta))_n \|^2}{\sum_n w_n},
        \quad \bar\theta \leftarrow \alpha_k \bar\theta + (1 - \alpha_k)\theta,
        \quad \alpha_k = \min(1 - 1/(k + 1),\, \alpha)

    Args:
        decay: :math:`\alpha` (no unit); 0.999 in the paper for long trainings, 0.99 at their start.
        noise: deviation of the Gaussian :math:`\xi`, in units of the normalised intensity; 0.15 in the paper.
        distance: ``mse`` of probabilities, mean over classes (the paper's), or ``kl``.
        reduction: voxel weights: ``uniform`` (the paper's), ``balanced`` or ``foreground``, by the average's classes.
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)``; returns one scalar, ``mean_teacher``.
    Reads: logits of the student and of its average. Learns: nothing; keeps the average, which is saved with the
        method and not shipped. Teacher: none. Regions: yes.
    Departs from the paper: voxels in place of images; the average runs in evaluation mode; the weight's sigmoid
        ramp is the YAML's linear one.

    Reference: Tarvainen, Valpola, *Mean teachers are better role models: Weight-averaged consistency targets improve
        semi-supervised deep learning results*, NeurIPS 2017, arXiv:1703.01780, eq. 1 and 2.
    Code read: none; numbers from the paper.
    """

    reads_teacher: ClassVar[bool] = False
    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        decay: float = 0.99,
        noise: float = 0.1,
        distance: str = "mse",
        reduction: str = "uniform",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"mean_teacher: decay {decay} must lie in [0, 1)")
        if noise < 0:
            raise UserError(f"mean_teacher: noise {noise} must not be negative")
        if distance not in DISTANCES:
            raise UserError(f"mean_teacher: distance {distance!r} is not one of {', '.join(DISTANCES)}")
        check_reduction("mean_teacher", reduction)
        self.decay, self.noise, self.distance = decay, noise, distance
        self.reduction, self.margin_mm = reduction, margin_mm
        self.steps = 0
        # No submodule: its parameters are nobody's to train. The student is not known before the first round, and
        # a training that goes on has the saved weights before it has the network.
        self._average: tuple[nn.Module, ...] = ()
        self._saved: dict[str, Tensor] = {}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the average's weights and the number of its steps, for ``state_dict``."""
        weights = self._average[0].state_dict() if self._average else self._saved
        return {"steps": self.steps, "weights": dict(weights)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` returned."""
        self.steps, self._saved = int(state["steps"]), dict(state["weights"])
        if self._average and self._saved:
            self._average[0].load_state_dict(self._saved)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the term of the student and its average, which stands in the teacher's place."""
        if self.distance == "mse":
            loss = probability_distance(student.logits, teacher.logits, regions=batch.regions)
        else:
            loss = (binary_kl_map if batch.regions else kl_map)(student.logits, teacher.logits)
        return {"mean_teacher": weighted_mean(loss, voxel_weight(teacher, batch, self.reduction, self.margin_mm))}

    def turns(self, r: Round) -> Turns:
        student, average = r.nets["student"], self.average_of(r.nets["student"])
        image = r.batch.image + self.noise * torch.randn_like(r.batch.image)
        with torch.no_grad():
            target = View(first_head(average(image), image.ndim - 2), trust=r.batch.trust)
        yield Turn("student", self(r.view("student"), target, r.batch))
        if r.did_step:
            self.steps += 1
            follow(average, student, min(1 - 1 / (self.steps + 1), self.decay))

    def average_of(self, student: nn.Module) -> nn.Module:
        """Return the average; at first a frozen copy of ``student``, or of what was saved of an earlier average."""
        if not self._average:
            average = deepcopy(student).eval().requires_grad_(False)
            if self._saved:
                average.load_state_dict(self._saved)
            self._average = (average,)
        return self._average[0]


def probability_distance(student: Tensor, teacher: Tensor, *, regions: bool = False) -> Tensor:
    """Return the squared distance of probabilities of every voxel, mean over classes: ``(B, K, *S)`` -> ``(B, *S)``."""
    p, q = (z.sigmoid() if regions else z.softmax(1) for z in (full(student), full(teacher.detach())))
    return ((p - q) ** 2).mean(1)


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move every weight of ``average`` the share ``1 - decay`` of the way to the student's; copy buffers."""
    for own, new in zip(average.parameters(), student.parameters(), strict=True):
        own.lerp_(new.to(own.dtype), 1 - decay)
    for kept, now in zip(average.buffers(), student.buffers(), strict=True):
        kept.copy_(now)
