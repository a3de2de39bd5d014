"""The table: what each network shows, once a round."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.networks.taps import Tapped
from medkd.training.round import Table
from medkd.types import Batch

IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABEL = torch.zeros(2, 6, 6, dtype=torch.long)


class Counting(nn.Module):
    """Two convolutions that count how often they are asked."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.asked = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        logits: Tensor = self.last(torch.tanh(self.first(x)))
        return logits


def tapped(seed: int, *, frozen: bool = False) -> Tapped:
    network = Counting(seed)
    found = Tapped(network.eval().requires_grad_(not frozen), IMAGE[:1])
    network.asked = 0
    return found


def table(teachers: int = 1, *, learners: int = 1, taps: tuple[str, ...] = ()) -> Table:
    names = ["student", *(f"peer{i}" for i in range(1, learners))]
    return Table(
        {name: tapped(i) for i, name in enumerate(names)},
        [tapped(10 + i, frozen=True) for i in range(teachers)],
        taps,
        taps,
    )


def deal(made: Table, **extra: object) -> None:
    made.deal(Batch(IMAGE, LABEL, **extra), 0.5)  # type: ignore[arg-type]


def test_names() -> None:
    made = table(2, learners=3)
    assert made.learners == ("student", "peer1", "peer2")
    assert made.teachers == ("teacher0", "teacher1")
    assert list(made.nets) == [*made.learners, *made.teachers]


def test_each_looks_once_a_round() -> None:
    made = table(2)
    deal(made)
    first = made.view("student")
    assert made.view("student") is first
    assert made.view("teacher") is made.view("teacher")
    assert made.nets["student"].asked == made.nets["teacher0"].asked == 1
    deal(made)
    assert made.view("student") is not first
    assert (made.progress, made.did_step) == (0.5, False)


def test_after_a_step_a_view_is_history() -> None:
    made = table(taps=("first",))
    deal(made)
    before = made.view("student")
    assert before.logits.requires_grad
    made.stepped("student")
    after = made.view("student")
    assert not after.logits.requires_grad
    assert not after.taps["first"].requires_grad
    assert torch.equal(after.logits, before.logits)
    assert made.did_step
    made.stepped("critic", did_step=False)  # who showed nothing has no history
    assert not made.did_step


def test_a_live_teacher_makes_no_graph_unless_an_image_asks_for_one() -> None:
    made = table()
    deal(made)
    assert not made.view("teacher").logits.requires_grad
    image = IMAGE.clone().requires_grad_()
    fake = made.view("teacher", image)
    fake.logits.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.nets["teacher0"].parameters())
    with torch.no_grad():
        assert not made.view("teacher", image).logits.requires_grad


def test_another_image_is_not_kept() -> None:
    made = table()
    deal(made)
    other = made.view("student", IMAGE + 1)
    assert not torch.equal(other.logits, made.view("student").logits)


def test_several_teachers_are_one_and_each_can_be_asked() -> None:
    made = table(2)
    deal(made, trust=torch.ones(2, 1, 6, 6))
    fused = F.softmax(made.view("teacher").logits, 1)
    each = [F.softmax(made.view(name).logits, 1) for name in made.teachers]
    torch.testing.assert_close(fused, torch.stack(each).mean(0))
    assert made.view("teacher").trust is made.batch.trust


def test_taps_of_a_single_teacher() -> None:
    made = table(1, taps=("first",))
    deal(made)
    assert made.view("teacher").taps["first"].shape == (2, 4, 6, 6)
    assert table(2, taps=("first",)).teachers == ("teacher0", "teacher1")


@pytest.mark.parametrize("regions", [False, True])
def test_stored_targets_speak_for_the_teacher(regions: bool) -> None:
    made = table(0)
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    target = torch.sigmoid(logits) if regions else F.softmax(logits, 1)
    trust = torch.rand(2, 1, 6, 6)
    deal(made, target=target, trust=trust, regions=regions)
    view = made.view("teacher")
    back = torch.sigmoid(view.logits) if regions else F.softmax(view.logits, 1)
    torch.testing.assert_close(back, target, atol=1e-5, rtol=1e-4)
    assert view.trust is trust
    with pytest.raises(UserError, match="new images, which stored targets cannot answer"):
        made.view("teacher", IMAGE)


def test_who_is_not_there_is_told() -> None:
    made = table(0)
    deal(made)
    with pytest.raises(UserError, match="asks for a teacher and the stage has none"):
        made.view("teacher")
    with pytest.raises(UserError, match="no network 'peer1' at the table; there are student"):
        made.view("peer1")


class Fixed(nn.Module):
    """Says the same everywhere."""

    def __init__(self, *p: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(p).log().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1, *x.shape[2:])


def live(*teachers: tuple[float, ...], channels: list[list[int]]) -> Table:
    frozen = [Tapped(Fixed(*p).requires_grad_(False), IMAGE[:1]) for p in teachers]
    return Table({"student": tapped(0)}, frozen, channels=channels)


def test_live_teachers_of_other_classes_are_fused_over_the_students() -> None:
    made = live((0.4, 0.6), (0.9, 0.1), channels=[[2], [1]])
    deal(made)
    view = made.view("teacher")
    assert torch.allclose(view.logits.exp()[0, :, 0, 0], torch.tensor([0.3, 0.1, 0.6]), atol=1e-6)
    assert view.trust is None


def test_live_teachers_in_conflict_are_trusted_less_beside_the_batchs_own_trust() -> None:
    made = live((0.2, 0.8), (0.4, 0.6), channels=[[2], [1]])
    deal(made, trust=torch.full((2, 1, 6, 6), 0.5))
    view = made.view("teacher")
    assert view.trust is not None
    assert float(view.trust[0, 0, 0, 0]) == pytest.approx(0.5 * 0.6, abs=1e-5)
    assert torch.allclose(view.logits.exp()[0, :, 0, 0], torch.tensor([0.0, 0.2, 0.8]), atol=1e-5)


def test_one_teacher_at_a_time_must_know_what_the_others_know() -> None:
    made = live((0.2, 0.8), (0.4, 0.6), channels=[[2], [1]])
    deal(made)
    with pytest.raises(UserError, match="one by one"):
        made.view("teacher1")
    alike = live((0.2, 0.8), (0.4, 0.6), channels=[[1], [1]])
    deal(alike)
    assert torch.allclose(alike.view("teacher1").logits.exp()[0, :, 0, 0], torch.tensor([0.4, 0.6, 0.0]), atol=1e-5)
