"""Online distillation in which critics draw the features of peers together."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.online.dml import as_teacher, check_peers
from medkd.methods.ops import binary_kl_map, full, kl_map, weighted_mean
from medkd.methods.parts import Critic, pool_nodes
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View


@final
class AFDOnlineAdversarial(Method):
    r"""Learners match each other's logits, and move their features to where a critic takes them for a peer's.

    .. math:: L_k = \tau^2\,\mathrm{KL}\big(\sigma(z_{k-1}/\tau) \,\|\, \sigma(z_k/\tau)\big)
        + \lambda\,(1 - D_k(G_k))^2, \quad L_{D_k} = (1 - D_k(G_{k-1}))^2 + D_k(G_k)^2

    Learner k learns from learner k - 1 only, in a circle; for two this is each from the other.

    Args:
        temperature: :math:`\tau` (no unit); 3 in the paper for many classes.
        adversarial: :math:`\lambda`. The paper takes the adversarial step by itself, with a rate of 2e-5 where the
            other is 0.1; here it is a small share of one step.
        tap: the feature map :math:`G`, of the same name in every learner; pooled to at most 4096 positions.
        peers: learners beside the student, the same number as the stage's ``peers``.
        width: channels of a critic's first layer.
        depth: strided layers of a critic.
        reduction: voxel weights of the KL: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` and taps ``(B, C, *s)`` of every learner; returns ``mimic`` and ``fool`` a learner,
        and ``critic`` for each critic.
    Reads: logits and a tap of all learners. Learns: a critic for each learner, with an optimiser of its own.
        Teacher: none. Regions: yes.
    Departs from the paper: one step of a learner minimises both losses; transfer layers are the identity, since all
        learners of a stage have one architecture; critics give plain scores, without a sigmoid.

    Reference: Chung et al., *Feature-map-level Online Adversarial Knowledge Distillation*, ICML 2020,
        arXiv:2002.01775, eq. 1 to 6.
    Code read: none is released; equations from the paper.
    """

    reads_teacher: ClassVar[bool] = False
    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        adversarial: float = 0.01,
        tap: str = "bottleneck",
        peers: int = 1,
        width: int = 16,
        depth: int = 2,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"afd_online_adversarial: temperature {temperature} must be above 0")
        if adversarial < 0:
            raise UserError(f"afd_online_adversarial: adversarial {adversarial} must not be negative")
        if peers < 1:
            raise UserError(f"afd_online_adversarial: peers {peers} must be 1 or more, as many as the stage's")
        check_reduction("afd_online_adversarial", reduction)
        self.temperature, self.adversarial, self.tap, self.peers = temperature, adversarial, tap, peers
        self.width, self.depth, self.reduction, self.margin_mm = width, depth, reduction, margin_mm
        self.critics = nn.ModuleDict()

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        channels = student.taps[self.tap].channels
        names = ("student", *(f"peer{i + 1}" for i in range(self.peers)))
        critics = {name: Critic(channels, student.dims, width=self.width, depth=self.depth) for name in names}
        self.critics = nn.ModuleDict(critics)

    def players(self) -> dict[str, nn.Module]:
        return {f"critic_{name}": critic for name, critic in self.critics.items()}

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the logit term of one learner and the one before it, who stands in the teacher's place."""
        kl = (binary_kl_map if batch.regions else kl_map)(student.logits, teacher.logits, self.temperature)
        return {"mimic": weighted_mean(kl, voxel_weight(teacher, batch, self.reduction, self.margin_mm))}

    def turns(self, r: Round) -> Turns:
        check_peers("afd_online_adversarial", r)
        if len(r.learners) != len(self.critics):
            raise UserError(
                f"afd_online_adversarial: peers is {self.peers} and the stage seats {len(r.learners) - 1}; "
                "give both the same number"
            )
        before = {me: r.learners[i - 1] for i, me in enumerate(r.learners)}
        past = {name: as_teacher(r.view(name), r.batch) for name in r.learners}
        for me in r.learners:
            own = self.critics[me](self._features(r.view(me)))
            terms = self(r.view(me), past[before[me]], r.batch)
            yield Turn(me, terms | {"fool": self.adversarial * fool_loss(own)})
        for me in r.learners:
            own, peer = (self.critics[me](self._features(past[name])) for name in (me, before[me]))
            yield Turn(f"critic_{me}", {"critic": critic_loss(own, peer)})

    def _features(self, view: View) -> Tensor:
        x = pool_nodes(full(view.taps[self.tap]))
        least = 2**self.depth
        # thin bottlenecks are repeated outwards, so that every strided layer has something to stride over
        grow = [max(1, -(-least // size)) for size in x.shape[2:]]
        if max(grow) > 1:
            for axis, times in enumerate(grow, 2):
                x = x.repeat_interleave(times, dim=axis)
        return x


def critic_loss(own: Tensor, peer: Tensor) -> Tensor:
    """Return what a critic minimises: scores of a peer's features to 1, of the learner's own to 0 (least squares)."""
    return ((1 - full(peer)) ** 2).mean() + (full(own) ** 2).mean()


def fool_loss(own: Tensor) -> Tensor:
    """Return what a learner minimises: its critic's scores of its features to 1."""
    return ((1 - full(own)) ** 2).mean()
