"""The teacher's own head on the student's features (SimKD)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser
from medkd.methods.ops import full, resize_to, trusted_mean
from medkd.methods.parts import Norm, conv
from medkd.types import Anatomy, Batch, Terms, View

LASTS = ("linear", "relu")
NORMS = ("instance", "batch")


@final
class SimKD(Method):
    r"""Match the features before the teacher's head, then ship that head on top of the student.

    .. math:: L = \frac{1}{BCN} \sum_{b,c,n} \big(P(F^s)_{bcn} - F^t_{bcn}\big)^2, \quad z = h_t(P(F^s))

    with a projector P (convolutions of 1, 3 and 1) and the frozen head of the teacher, :math:`h_t`. The network that is
    validated, kept and exported is student, projector and head together.

    Args:
        tap: the student's last feature point, from which its own head makes the logits.
        teacher_tap: the teacher's; the same name when None.
        squeeze: the projector is this many times narrower inside than the teacher; 2 in the paper.
        last: end of the projector. ``linear``: features of any sign; ``relu``: the paper's, with normalisation.
        norm: in the projector, ``instance``, the same for every batch size, or the paper's ``batch``.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, compared on the coarser grid; returns one scalar, ``simkd``.
    Reads: taps. Learns: the projector. Teacher: one, frozen, live; its head is shipped. Regions: yes.
    Departs from the paper: segmentation heads keep their grid, there is no global pooling; a linear end by default,
        since features of segmentation networks are often negative. It is meant to be the only method of its stage:
        the student's own head is not shipped.

    Reference: Chen et al., *Knowledge Distillation with the Reused Teacher Classifier*, CVPR 2022, arXiv:2203.14001,
        section 3.
    Code read: DefangChen/SimKD (weight 1, no other loss).
    """

    regions: ClassVar[bool] = True
    needs_live_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "dec0",
        teacher_tap: str | None = None,
        squeeze: int = 2,
        last: str = "linear",
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if squeeze < 1:
            raise UserError(f"simkd: squeeze {squeeze} must be 1 or more")
        check_projector(last, norm)
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.squeeze, self.last, self.norm = squeeze, last, norm
        self.projector: nn.Module = nn.Identity()
        self.ends: tuple[Anatomy, Anatomy] | None = None  # in a tuple: the teacher is no part of what is learned

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap]
        self.projector = Projector(
            s.channels, t.channels, student.dims, squeeze=self.squeeze, last=self.last, norm=self.norm
        )
        self.ends = (student, teacher)
        for who, anatomy, tap in (("student", student, self.tap), ("teacher", teacher, self.teacher_tap)):
            if anatomy.network is not None and tap not in anatomy.heads:
                known = ", ".join(name for name in anatomy.heads if "." not in name) or ", ".join(anatomy.heads)
                raise UserError(
                    f"simkd: the {who} makes no logits from {tap!r} alone; it does from {known or 'no tap'}"
                )

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap]
        size = coarser(s, t)
        projected = self.projector(resize_to(full(s), size))
        return {"simkd": simkd(projected, resize_to(full(t), size), teacher.trust)}

    def deploy(self, student: nn.Module) -> nn.Module:
        ours, theirs = self.ends or (None, None)
        if ours is None or theirs is None or theirs.network is None:
            raise UserError("simkd ships the teacher's head and has met no teacher; add `teacher: ...` to the stage")
        teacher = theirs.network
        s, t = ours.taps[self.tap], theirs.taps[self.teacher_tap]
        arguments: dict[str, Any] = {
            "student_head": ours.heads[self.tap],
            "teacher_head": theirs.heads[self.teacher_tap],
            "features": [s.channels, t.channels],
            "ratio": [a / b for a, b in zip(s.stride, t.stride, strict=True)],
            "spatial_dims": ours.dims,
            "squeeze": self.squeeze,
            "last": self.last,
            "norm": self.norm,
        }
        reused = Reused(student=student, teacher=teacher, projector=self.projector, **arguments)
        specs = {"student": getattr(student, "spec", None), "teacher": getattr(teacher, "spec", None)}
        reused.__dict__["spec"] = {"name": f"{Reused.__module__}.{Reused.__name__}", **specs, **arguments}
        return reused


class Projector(nn.Module):
    """Student's features to the teacher's width: convolutions of 1, 3 and 1 without bias, each normalised, with ReLU.

    Args:
        student: channels of the student's tap.
        teacher: channels of the teacher's.
        dims: spatial axes.
        squeeze: how many times narrower than the teacher it is inside.
        last: ``relu`` ends as it goes on; ``linear`` with the last convolution, which then has a bias.
        norm: ``instance`` or ``batch``.

    Shapes: ``(B, C_s, *s)`` -> ``(B, C_t, *s)``.
    """

    def __init__(
        self, student: int, teacher: int, dims: int, *, squeeze: int = 2, last: str = "relu", norm: str = "batch"
    ) -> None:
        super().__init__()
        check_projector(last, norm)
        inside = max(1, teacher // squeeze)
        layers = [conv(dims, student, inside, bias=False), Norm(dims, inside, norm), nn.ReLU()]
        layers += [conv(dims, inside, inside, 3, bias=False), Norm(dims, inside, norm), nn.ReLU()]
        layers += [conv(dims, inside, teacher, bias=last == "linear")]
        if last == "relu":
            layers += [Norm(dims, teacher, norm), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features."""
        y: Tensor = self.layers(x)
        return y


class Reused(nn.Module):
    """The network that SimKD ships: a student's body, the projector, and the head of its teacher.

    Args:
        student: the student; its own head is left out.
        teacher: the teacher, of which only the head is kept.
        student_head: module path of the student's head.
        teacher_head: module path of the teacher's.
        features: channels before the student's head and before the teacher's.
        ratio: stride of the student's features over that of the teacher's, by axis.
        spatial_dims: spatial axes.
        squeeze: of the projector.
        last: of the projector.
        norm: of the projector.
        projector: a trained one; new when None.

    Shapes: ``(B, C, *S)`` -> logits ``(B, K, *S)``.
    """

    networks: ClassVar[tuple[str, ...]] = ("student", "teacher")
    """Arguments that a spec writes as specs of networks."""

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        student_head: str,
        teacher_head: str,
        features: Sequence[int],
        ratio: Sequence[float],
        spatial_dims: int = 3,
        squeeze: int = 2,
        last: str = "linear",
        norm: str = "instance",
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if projector is None:
            ours, theirs = features
            projector = Projector(ours, theirs, spatial_dims, squeeze=squeeze, last=last, norm=norm)
        self.student = beheaded(student, student_head)
        self.projector = projector
        self.head = teacher.get_submodule(teacher_head)
        self.finer = tuple(max(1, round(1 / r)) for r in ratio)
        self.coarser = tuple(max(1.0, float(r)) for r in ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits that the teacher's head reads off the student's features."""
        features: Tensor = self.student(x)
        dims = features.ndim - 2
        if max(self.finer) > 1:
            features = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1](features, self.finer)
        features = self.projector(features)
        if max(self.coarser) > 1:
            mode = ("linear", "bilinear", "trilinear")[dims - 1]
            features = F.interpolate(features, scale_factor=self.coarser, mode=mode, align_corners=False)
        logits: Tensor = self.head(features)
        return logits


def simkd(projected: Tensor, teacher: Tensor, trust: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of projected and teacher's features.

    Shapes: ``(B, C, *s)`` twice, trust ``(B, 1, *S)`` or None; a scalar. The teacher gets no gradient.
    """
    return trusted_mean((full(projected) - full(teacher.detach())).square(), trust)


def beheaded(network: nn.Module, head: str) -> nn.Module:
    """Return ``network`` ending before the module ``head``; it shares every other module, and is not changed."""
    name, _, rest = head.partition(".")
    body = copy.copy(network)
    child = beheaded(network.get_submodule(name), rest) if rest else nn.Identity()
    body.__dict__["_modules"] = {**network._modules, name: child}
    return body


def check_projector(last: str, norm: str) -> None:
    """Refuse an end or a normalisation that a projector does not know."""
    if last not in LASTS:
        raise UserError(f"simkd: last {last!r} is not one of {', '.join(LASTS)}")
    if norm not in NORMS:
        raise UserError(f"simkd: norm {norm!r} is not one of {', '.join(NORMS)}")
