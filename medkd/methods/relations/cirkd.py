"""Cross-image relational knowledge distillation (CIRKD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser
from medkd.methods.ops import full, kl_map, label_to, one_hot, resize_to, weighted_mean
from medkd.methods.parts import NODES, class_embeddings, unit
from medkd.methods.regions import trusted_nodes
from medkd.types import IGNORE, Anatomy, Batch, Terms, View


@final
class CIRKD(Method):
    r"""Match how alike a voxel is to the voxels of the batch, and to voxels and regions of scans seen before.

    .. math:: L_B = \frac{1}{B^2 M} \sum_{ij,n} \mathrm{KL}\Big(\sigma\big(\tfrac{t_{in} \cdot t_j}{\tau}\big) \Big\|
        \sigma\big(\tfrac{s_{in} \cdot s_j}{\tau}\big)\Big), \quad L_V = \overline{\mathrm{KL}\Big(\sigma\big(\tfrac{t_n
        \cdot V}{\tau}\big) \Big\| \sigma\big(\tfrac{P(s)_n \cdot V}{\tau}\big)\Big)}

    on features of length one; :math:`\sigma` is over the M nodes of image j, or over the rows of V: voxels or regions
    of each class that a memory keeps of the teacher; P is a learned projector.

    Args:
        tap: the student's feature point; the paper reads the last features of the decoder.
        teacher_tap: the teacher's, where its name differs.
        temperature: :math:`\tau` (no unit); 0.1 in the paper.
        batch: weight of :math:`L_B`; 1 in the paper.
        pixel: weight of :math:`L_V` against voxels; 0.1 in the paper.
        region: weight of :math:`L_V` against regions; 0.1 in the paper.
        nodes: features are pooled to at most so many positions for :math:`L_B`; at most 4096.
        voxels: drawn from the batch, balanced over classes, to be compared with the memory.
        pixel_memory: voxels kept a class; 20000 in the paper.
        region_memory: regions kept a class; 2000 in the paper.
        pixel_keys: drawn from the voxels kept, over all classes; 4096 in the paper.
        region_keys: drawn from the regions kept; 1024 in the paper.
        each: voxels of each class and case that are kept a step; 16 in the paper.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, compared on the coarser grid; returns ``batch``, ``pixel`` and
        ``region``, weighted. The memory takes K (pixel_memory + region_memory) C_t numbers.
    Reads: taps, labels for the memory; voxels without label are skipped there. Learns: the projector. Teacher: one,
        frozen, live. Regions: no.
    Departs from the paper: nodes and drawn voxels in place of all; nothing but real features in the memory, where the
        released code starts from noise; voxels are kept by their class, where it draws positions of the whole map.

    Reference: Yang et al., *Cross-Image Relational Knowledge Distillation for Semantic Segmentation*, CVPR 2022,
        arXiv:2204.06986, eqs. 4 to 12.
    Code read: winycg/CIRKD.
    """

    reads_labels: ClassVar[bool] = True
    example: ClassVar[Mapping[str, object]] = {"tap": "enc1"}

    def __init__(
        self,
        *,
        tap: str = "dec0",
        teacher_tap: str | None = None,
        temperature: float = 0.1,
        batch: float = 1.0,
        pixel: float = 0.1,
        region: float = 0.1,
        nodes: int = 512,
        voxels: int = 2048,
        pixel_memory: int = 2000,
        region_memory: int = 2000,
        pixel_keys: int = 4096,
        region_keys: int = 1024,
        each: int = 16,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"cirkd: temperature {temperature} must be above 0")
        if min(batch, pixel, region) < 0:
            raise UserError("cirkd: the weights batch, pixel and region must not be negative")
        if not 1 <= nodes <= NODES:
            raise UserError(f"cirkd: nodes {nodes} must lie between 1 and {NODES}; a map of their pairs must fit")
        if min(voxels, pixel_memory, region_memory, pixel_keys, region_keys, each) < 1:
            raise UserError("cirkd: sizes of memories and of what is drawn must be 1 or more")
        self.tap, self.teacher_tap, self.temperature = tap, teacher_tap or tap, temperature
        self.weights = (batch, pixel, region)
        self.nodes, self.voxels, self.each = nodes, voxels, each
        self.sizes, self.keys = (pixel_memory, region_memory), (pixel_keys, region_keys)
        self.projector: nn.Module = nn.Identity()

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        inside, outside = student.taps[self.tap].channels, teacher.taps[self.teacher_tap].channels
        self.projector = projector(inside, outside)
        self.pixels = ClassMemory(student.classes, self.sizes[0], outside)
        self.regional = ClassMemory(student.classes, self.sizes[1], outside)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        if batch.regions:
            raise UserError("cirkd needs one class a voxel; for overlapping regions use sp or crd")
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap].detach()
        size = coarser(s, t)
        s, t = resize_to(full(s), size), resize_to(full(t), size)
        across = cross_image(s, t, self.temperature, trust=teacher.trust, most=self.nodes)
        label = label_to(batch.label, size)
        if teacher.trust is not None:
            label = torch.where(resize_to(full(teacher.trust), size).squeeze(1) > 0, label, IGNORE)
        pixel, region = self._remembered(s, t, label)
        terms = (across, pixel, region)
        return {name: w * x for name, w, x in zip(("batch", "pixel", "region"), self.weights, terms, strict=True)}

    def _remembered(self, s: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms against both memories, after they have seen this batch."""
        classes = self.pixels.rows.shape[0]
        t = unit(torch.where((label != IGNORE).unsqueeze(1), t, torch.zeros_like(t)))
        by_voxel = t.movedim(1, -1).flatten(0, -2)
        if self.training:
            self.regional.write(*region_rows(t, label, classes))
            kept = draw(_grouped(label, classes), self.each)
            self.pixels.write(by_voxel[kept], label.flatten()[kept])
        here = torch.where(label == IGNORE, -1, label).flatten()
        present = int(torch.bincount(here[here >= 0], minlength=classes).count_nonzero())
        at = draw(here, max(1, self.voxels // max(1, present)))
        if len(at) < 2:  # the projector normalises over what is drawn
            return s.sum() * 0.0, s.sum() * 0.0
        ours = self.projector(s.movedim(1, -1).flatten(0, -2)[at])
        pixel, region = (
            memory_kl(ours, by_voxel[at], memory.draw(-(-keys // classes)), self.temperature)
            for memory, keys in zip((self.pixels, self.regional), self.keys, strict=True)
        )
        return pixel, region


class ClassMemory(nn.Module):
    """The last rows of every class, first in first out, as buffers.

    Args:
        classes: K.
        size: rows kept a class.
        channels: numbers a row.
    """

    rows: Tensor
    at: Tensor
    filled: Tensor

    def __init__(self, classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, size, channels))
        self.register_buffer("at", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.long))

    @torch.no_grad()
    def write(self, rows: Tensor, owner: Tensor) -> None:
        """Remember ``(m, C)`` rows of classes ``(m,)``, in their order; of more than fit, the last."""
        classes, size = self.rows.shape[:2]
        count = torch.bincount(owner, minlength=classes)
        rank = ranks(owner)
        fits = rank >= count[owner] - size
        slot = (self.at[owner] + rank) % size
        self.rows[owner[fits], slot[fits]] = rows[fits].to(self.rows.dtype)
        self.at.copy_((self.at + count) % size)
        self.filled.copy_((self.filled + count).clamp_max(size))

    def draw(self, most: int) -> Tensor:
        """Return a copy of up to ``most`` rows of every class, drawn at random: ``(n, C)``."""
        size = self.rows.shape[1]
        score = torch.rand(self.rows.shape[:2], device=self.rows.device)
        score = score.masked_fill(torch.arange(size, device=score.device) >= self.filled.unsqueeze(1), -1.0)
        best, where = score.topk(min(most, size), dim=1)
        owner = torch.arange(len(where), device=where.device).unsqueeze(1).expand_as(where)
        return self.rows[owner[best >= 0], where[best >= 0]]


def projector(inside: int, outside: int) -> nn.Sequential:
    """Return the paper's head, convolutions of one voxel, as it works on rows ``(n, C_s)`` -> ``(n, C_t)``."""
    return nn.Sequential(
        nn.Linear(inside, outside, bias=False),
        nn.BatchNorm1d(outside),
        nn.ReLU(),
        nn.Linear(outside, outside, bias=False),
    )


def cross_image(
    student: Tensor, teacher: Tensor, temperature: float = 0.1, *, trust: Tensor | None = None, most: int = NODES
) -> Tensor:
    """Return the KL between the similarities of every two images of the batch, one image with itself included.

    Args:
        student: ``(B, C_s, *s)``.
        teacher: ``(B, C_t, *s)`` on the same grid; gets no gradient.
        temperature: of the similarities.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.
        most: nodes that both are pooled to where they have more positions.

    Shapes: a scalar: a sum over columns, mean over rows and ordered pairs of images; no square of the temperature.
    """
    s, weight = trusted_nodes(student, trust, most)
    t, _ = trusted_nodes(teacher.detach(), trust, most)
    log_s, log_t = (_log_similarity(unit(x, 2), temperature, weight) for x in (s, t))
    kl = (log_t.exp() * (log_t - log_s)).sum(-1)
    counts = weight.unsqueeze(1) * (weight > 0).any(1).view(1, -1, 1)
    return weighted_mean(kl, counts.expand_as(kl))


def _log_similarity(nodes: Tensor, temperature: float, weight: Tensor) -> Tensor:
    logits = torch.einsum("inc,jmc->ijnm", nodes, nodes) / temperature
    return logits.masked_fill((weight <= 0).view(1, len(weight), 1, -1), -1e4).log_softmax(-1)


def memory_kl(
    student: Tensor,
    teacher: Tensor,
    keys: Tensor,
    temperature: float = 0.1,
    kd_temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the KL between the similarities of voxels to remembered rows, mean over voxels.

    Shapes: projected student ``(n, C)``, teacher ``(n, C)``, keys of length one ``(m, C)``, weight ``(n,)`` or None;
    a scalar, zero without keys. No gradient reaches teacher or keys.
    """
    if not len(keys):
        return full(student).sum() * 0.0
    s, t = unit(student), unit(teacher.detach())
    keys = keys.detach().to(s.dtype)
    return weighted_mean(kl_map(s @ keys.T / temperature, t @ keys.T / temperature, kd_temperature), weight)


def region_rows(teacher: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean direction of every class of every image, image by image, and its class.

    Shapes: features of length one ``(B, C, *s)``, labels ``(B, *s)`` on the same grid -> ``(m, C)``, ``(m,)``.
    """
    means, present = class_embeddings(teacher, one_hot(label, classes))
    return unit(means, 2)[present], present.nonzero()[:, 1]


def ranks(group: Tensor) -> Tensor:
    """Return how many earlier entries of ``(n,)`` are in the same group."""
    order = torch.argsort(group, stable=True)
    ordered = group[order]
    place = torch.arange(len(group), device=group.device)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(first, place, torch.zeros_like(place)).cummax(0).values if len(group) else place
    return torch.empty_like(place).scatter_(0, order, place - start)


def draw(group: Tensor, most: int) -> Tensor:
    """Return positions of up to ``most`` entries of every group of ``(n,)``, drawn at random; none of group -1."""
    order = torch.randperm(len(group), device=group.device)
    shuffled = group[order]
    return order[(ranks(shuffled) < most) & (shuffled >= 0)]


def _grouped(label: Tensor, classes: int) -> Tensor:
    sample = torch.arange(len(label), device=label.device).view(-1, *[1] * (label.ndim - 1))
    return torch.where(label == IGNORE, -1, sample * classes + label).flatten()
