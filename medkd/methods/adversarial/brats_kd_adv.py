"""Distillation on clean and on adversarially perturbed volumes."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import binary_kl_map, full, kl_map, weighted_mean
from medkd.methods.supervised import dice_ce, dice_ce_regions
from medkd.types import Batch, Round, Terms, Turn, Turns, View


@final
class BratsKDAdv(Method):
    r"""Match the teachers, and answer right and like them when the image is changed to the student's worst.

    .. math:: \delta = \epsilon\,\mathrm{sign}\big(\nabla_x L_{sup}(f(x), y)\big), \quad
        L = a\,L_{kd}(x) + b\,\big(L_{sup}(f(x + \delta), y) + L_{kd}(x + \delta)\big)

    with :math:`L_{kd}` the tempered KL to the teachers' answer for the clean image.

    Args:
        temperature: :math:`\tau` (no unit).
        kd: :math:`a`; 0.5 by default, beside ``supervised`` with weight 0.5.
        adversarial: :math:`b`; 0.1 to 1 are sensible.
        epsilon: :math:`\epsilon`, in units of the normalised intensity.
        reduction: voxel weights of the KL: ``balanced``, ``foreground`` or ``uniform``.
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``, or ``(B, K, *S)`` for overlapping regions; returns ``kd``,
        ``adversarial`` and ``adversarial_kd``.
    Reads: logits, labels, the student's answer to another image. Learns: nothing. Teacher: one or an ensemble, frozen,
        cacheable. Regions: yes.
    Departs from the paper: a reading of its abstract; "adversarial training" is taken as training on adversarial
        images. A critic that tells the student's maps from the teacher's is the method ``skd``.

    Reference: after Hou et al., *Brain Tumor Segmentation based on Knowledge Distillation and Adversarial Training*,
        IJCNN 2021; perturbation: Goodfellow et al., arXiv:1412.6572, section 4.
    """

    reads_labels: ClassVar[bool] = True
    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        kd: float = 0.5,
        adversarial: float = 0.5,
        epsilon: float = 0.01,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"brats_kd_adv: temperature {temperature} must be above 0")
        if min(kd, adversarial, epsilon) < 0:
            raise UserError("brats_kd_adv: kd, adversarial and epsilon must not be negative")
        check_reduction("brats_kd_adv", reduction)
        self.temperature, self.kd, self.adversarial, self.epsilon = temperature, kd, adversarial, epsilon
        self.reduction, self.margin_mm = reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        return {"kd": self.kd * self._distil(student, teacher, batch)}

    def turns(self, r: Round) -> Turns:
        teacher, terms = r.view("teacher"), {}
        if self.adversarial:
            image = r.batch.image.detach().clone().requires_grad_()
            delta = perturbation(image, supervised(r.view("student", image), r.batch), self.epsilon)
            worst = r.view("student", image.detach() + delta)
            terms["adversarial"] = self.adversarial * supervised(worst, r.batch)
            terms["adversarial_kd"] = self.adversarial * self._distil(worst, teacher, r.batch)
        yield Turn("student", self(r.view("student"), teacher, r.batch) | terms)

    def _distil(self, student: View, teacher: View, batch: Batch) -> Tensor:
        kl = (binary_kl_map if batch.regions else kl_map)(student.logits, teacher.logits, self.temperature)
        return weighted_mean(kl, voxel_weight(teacher, batch, self.reduction, self.margin_mm))


def perturbation(image: Tensor, loss: Tensor, epsilon: float) -> Tensor:
    """Return the step of size ``epsilon`` that raises ``loss`` most, every voxel by itself; zero where it does nothing.

    Shapes: ``image`` ``(B, C, *S)``, which wants a gradient and from which ``loss`` was computed -> the same.
    """
    (slope,) = torch.autograd.grad(loss, image)
    return epsilon * full(slope).sign()


def supervised(view: View, batch: Batch) -> Tensor:
    """Return Dice loss plus cross-entropy of one view; a scalar."""
    dice, ce = (
        dice_ce_regions(view.logits, batch.label)
        if batch.regions
        else dice_ce(view.logits, batch.label, classes=batch.known)
    )
    return dice + ce
