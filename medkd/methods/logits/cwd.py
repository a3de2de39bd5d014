"""Channel-wise knowledge distillation (CWD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.methods.parts import Adapter
from medkd.types import Anatomy, Batch, Terms, View


@final
class CWD(Method):
    r"""Match *where* each class lights up: every channel is a distribution over voxels.

    .. math:: L = \frac{\tau^2}{BC} \sum_{b,c} \mathrm{KL}\big(\sigma(t_{bc}/\tau) \,\|\, \sigma(s_{bc}/\tau)\big),
        \quad \sigma = \text{softmax over voxels}

    Args:
        temperature: :math:`\tau`, flattens the maps (no unit). The authors' script has 4 on maps of 64 x 64;
            a volume has far more voxels and far flatter maps, hence 1.
        absent: weight of the channels of a sample whose class the teacher sees nowhere in the patch; their
            maps carry little but noise.
        tap: a feature point of the student to compare in place of the logits, through a 1x1x1 adapter without
            bias where the channels differ.
        teacher_tap: the teacher's, where its name differs.

    Shapes: logits ``(B, K, *S)`` of student and teacher, same ``K`` and ``S``, or taps ``(B, C, *s)``, the student's
        brought to the teacher's grid; returns one scalar, ``cwd``.
    Reads: logits, or one tap. Learns: the adapter of a tap. Teacher: one or an ensemble, frozen, cacheable for logits.
        Regions: yes.
    Departs from the paper: any number of axes; absent classes may weigh less; voxels without trust leave both
        distributions; for taps the mean is over the teacher's channels, where the code divides by the student's.

    Reference: Shu et al., *Channel-wise Knowledge Distillation for Dense Prediction*, ICCV 2021,
        arXiv:2011.13256, eq. 5.
    Code read: irfanICMLL/TorchDistiller, SemSeg-distill (weight 3, temperature 4; sum over voxels, mean over
        batch and channels); winycg/CIRKD (adapter of the feature form; weight 50 there).
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        absent: float = 1.0,
        tap: str | None = None,
        teacher_tap: str | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"cwd: temperature {temperature} must be above 0")
        if not 0 <= absent <= 1:
            raise UserError(f"cwd: absent {absent} must lie in [0, 1]")
        if tap is None and teacher_tap is not None:
            raise UserError("cwd: teacher_tap needs the student's tap beside it; add `tap: ...`")
        if tap is not None and absent < 1:
            raise UserError("cwd: absent is about classes, which a tap has not; leave one of the two out")
        self.temperature, self.absent = temperature, absent
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.adapter: nn.Module = nn.Identity()

    def taps(self) -> tuple[str, ...]:
        return () if self.tap is None else (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return () if self.teacher_tap is None else (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        if self.tap is not None and self.teacher_tap is not None:
            s, t = student.taps[self.tap], teacher.taps[self.teacher_tap]
            if s.channels != t.channels:
                self.adapter = Adapter(s, t, student.dims, bias=False)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        if self.tap is not None and self.teacher_tap is not None:
            t = teacher.taps[self.teacher_tap]
            s = resize_to(self.adapter(full(student.taps[self.tap])), t.shape[2:])
            trust = None if teacher.trust is None else resize_to(full(teacher.trust), t.shape[2:])
            return {"cwd": cwd(s, t, self.temperature, trust=trust)}
        weight = None
        if self.absent < 1:
            t = teacher.logits.detach()
            wins = t > 0 if batch.regions else t == t.amax(1, keepdim=True)
            if teacher.trust is not None:  # where stored targets end, all classes tie
                wins = wins & (teacher.trust > 0)
            weight = wins.flatten(2).any(-1).float().clamp_min(self.absent)
        return {"cwd": cwd(student.logits, teacher.logits, self.temperature, weight, teacher.trust)}


def cwd(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    weight: Tensor | None = None,
    trust: Tensor | None = None,
) -> Tensor:
    """Return the KL between per-channel voxel distributions, averaged over batch and channels.

    Shapes: ``(B, C, *S)`` twice; ``weight`` ``(B, C)`` or None for the paper's plain mean; ``trust``
    ``(B, 1, *S)``, voxels of zero trust take no part. A scalar.
    """
    s, t = full(student).flatten(2) / temperature, full(teacher.detach()).flatten(2) / temperature
    if trust is not None:
        out = trust.flatten(2) <= 0
        s, t = s.masked_fill(out, -1e4), t.masked_fill(out, -1e4)
    log_s, log_t = F.log_softmax(s, dim=-1), F.log_softmax(t, dim=-1)
    kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    return temperature**2 * weighted_mean(kl, weight)
