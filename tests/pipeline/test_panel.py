"""Teachers that answer together: who is asked, how they are pooled, how far they are trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.data.dataset import Case, Dataset
from medkd.data.plan import IntensityRule, Plan
from medkd.data.splits import Split
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.pipeline.steps.fidelity import audited
from medkd.pipeline.steps.panel import Panel, who_answers
from medkd.pipeline.steps.targets import stored
from medkd.pipeline.steps.teachers import Member
from medkd.teachers.cache import TargetStore
from medkd.teachers.calibrate import temper
from medkd.teachers.encodings import Encoding
from medkd.teachers.labels import Ontology
from medkd.teachers.sources import TeacherCard

LABELS = {"background": 0, "liver": 1, "spleen": 2}
PLAN = Plan(
    spacing_mm=(1.0, 1.0, 1.0),
    patch=(16, 16, 16),
    batch=2,
    intensity=(IntensityRule("zscore"),),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
)
SHAPE = (24, 20, 18)
CASES = ("a", "b", "c", "v", "u")
SPLIT = Split(("a", "b", "c"), ("v",), (), ("u",))


class Pointwise(nn.Module):
    """A network that looks at single voxels: sure by ``sharp``, of the first ``classes`` of liver and spleen."""

    def __init__(self, sharp: float, shift: float, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([sharp, shift]))
        self.classes = classes

    def forward(self, image: Tensor) -> Tensor:
        levels = torch.arange(self.classes + 1.0).view(-1, *[1] * (image.ndim - 2))
        return -self.weight[0] * (image - self.weight[1] - levels).square()


class Told:
    """A teacher made of it, that answers about whole volumes at once."""

    def __init__(self, card: TeacherCard, network: nn.Module, *, live: bool = True) -> None:
        self.card, self._network, self._live = card, network, live
        self.why_not_live = ""

    def answer(self, case: Case, prepared: np.ndarray, plan: Plan) -> np.ndarray:
        with torch.no_grad():
            said: np.ndarray = self._network(torch.from_numpy(prepared)[None]).softmax(1)[0].numpy()
        return said

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        self.why_not_live = "" if self._live else "its answers are saved"
        return self._network if self._live else None


def member(
    name: str, *seen: str, source: str = "teachers", sharp: float = 2.0, shift: float = 0.0, **more: Any
) -> Member:
    labels: Mapping[str, int] = more.pop("labels", LABELS)
    known: tuple[str, ...] | None = more.pop("trained_on", seen)
    card = TeacherCard(name, "medkd", dict(labels), 1, known, name)
    network = Pointwise(sharp, shift, len(labels) - 1)
    return Member(name, source, card, Told(card, network, **more))


@pytest.fixture
def ground(tmp_path: Path) -> Any:
    """Five cases whose image is the label and noise."""
    store = Store(tmp_path / "prepared")
    for seed, case in enumerate(CASES):
        rng = np.random.default_rng(seed)
        label = np.zeros(SHAPE, np.int16)
        label[3:12, 4:14, 3:14], label[14:20, 5:15, 4:12] = 1, 2
        image = label[None] + rng.normal(0, 0.5, (1, *SHAPE))
        store.add(case, image.astype(np.float32), None if case == "u" else label)
    store.close()
    cases = tuple(Case(case, (Path(f"{case}.nii"),), None if case == "u" else Path("l"), case) for case in CASES)
    dataset = Dataset("d", tmp_path, cases, LABELS, ("MR",), None, None)
    return SimpleNamespace(store=store, dataset=dataset, plan=PLAN, ontology=Ontology.of(LABELS))


def alone(one: Member, case: str, ground: Any) -> np.ndarray:
    assert one.teacher is not None
    return np.asarray(one.teacher.answer(ground.dataset.case(case), ground.store.image(case)[...], PLAN))


def test_an_ensemble_is_the_mean_of_all_members_whichever_teacher_they_are_of(ground: Any) -> None:
    members = [member("m0"), member("m1", sharp=1.0), member("m2", source="another", sharp=4.0)]
    answer = Panel(members, ground).answer("a")
    np.testing.assert_allclose(answer.probabilities, np.mean([alone(m, "a", ground) for m in members], 0), atol=1e-6)
    assert answer.trust is None


def test_with_temperatures_each_teacher_is_pooled_then_cooled_and_counts_once(ground: Any) -> None:
    members = [member("m0"), member("m1", sharp=1.0), member("m2", source="another", sharp=4.0)]
    answer = Panel(members, ground, temperatures={"teachers": 2.0, "another": 0.5}).answer("a")
    pooled = np.mean([alone(m, "a", ground) for m in members[:2]], 0)
    expected = (temper(pooled, 2.0) + temper(alone(members[2], "a", ground), 0.5)) / 2
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)


def test_disagreement_lowers_trust_and_leaves_the_answer(ground: Any) -> None:
    members = [member("m0"), member("m1", shift=0.8)]
    plain, doubting = Panel(members, ground).answer("a"), Panel(members, ground, trust="disagreement").answer("a")
    np.testing.assert_array_equal(plain.probabilities, doubting.probabilities)
    assert doubting.trust is not None
    differs = np.abs(alone(members[0], "a", ground) - alone(members[1], "a", ground)).sum(0)
    trust = doubting.trust[0]
    assert trust[differs > 1].mean() < trust[differs < 0.1].mean() - 0.2
    assert Panel(members[:1], ground, trust="disagreement").answer("a").trust is None


def test_who_saw_a_case_is_not_asked_about_it(ground: Any) -> None:
    members = [member("m0", "a", "b"), member("m1", "c")]
    who = who_answers(members, CASES, ground.dataset, ground.ontology)
    assert who == {"a": ("m1",), "b": ("m1",), "c": ("m0",), "v": ("m0", "m1"), "u": ("m0", "m1")}
    panel = Panel(members, ground, who)
    np.testing.assert_array_equal(panel.answer("c").probabilities, alone(members[0], "c", ground))


def test_somebody_of_every_set_of_classes_must_answer(ground: Any) -> None:
    organs = {"background": 0, "spleen": 1}
    members = [member("m0", "a"), member("m1", "b"), member("spleens", "a", labels=organs)]
    with pytest.raises(UserError, match=r"every member of the teacher \(spleens\) was trained on a,"):
        who_answers(members, CASES, ground.dataset, ground.ontology)


def test_the_temperature_is_fitted_on_what_the_teacher_did_not_see(ground: Any) -> None:
    """Noise of 0.5 makes 2 the honest sharpness: 1 / (2 * 0.5 ** 2). Twice as sure needs a temperature of 2."""
    sure = [member("m0", "a", sharp=4.0), member("m1", "b", "c", sharp=4.0)]
    honest = Panel([member("m0", "a", "b", "c")], ground).calibrate(SPLIT)["teachers"]
    assert honest.value == pytest.approx(1.0, rel=0.2)
    assert honest.note == "1 validation cases"
    who = who_answers(sure, (*SPLIT.train, *SPLIT.unlabelled), ground.dataset, ground.ontology)
    found = Panel(sure, ground, who).calibrate(SPLIT)["teachers"]
    assert found.value == pytest.approx(2 * honest.value, rel=0.1)
    assert found.note.startswith("3 training cases")
    assert found.ece_after < found.ece_before
    seen = Panel([member("m0", "v")], ground).calibrate(SPLIT)["teachers"]
    assert (seen.value, seen.note) == (1.0, "every labelled case was seen by the teacher")


def test_a_teacher_of_one_organ_is_calibrated_on_that_organ(ground: Any) -> None:
    """It calls the liver background: its label is turned into its own classes before it is judged."""
    labels = {"background": 0, "Liver": 1}
    found = Panel([member("m0", labels=labels, sharp=4.0)], ground).calibrate(SPLIT)["teachers"]
    label = np.asarray(ground.store.label("v")[0])
    assert found.voxels > (label == 1).sum()
    panel = Panel([member("m0", labels=labels)], ground)
    assert panel.known("a") == (True, True, False)
    assert panel.answer("a").probabilities[2].max() == 0


def test_the_audit_of_a_teacher_of_single_voxels_finds_nothing(ground: Any, tmp_path: Path) -> None:
    """It sees no border of a patch, so without intensity changes only the encoding is between stored and live."""
    panel = Panel([member("m0"), member("m1", sharp=1.0)], ground, temperatures={"teachers": 1.5})
    store = TargetStore(tmp_path / "targets", encoding=Encoding("full16"))
    for case in CASES:
        store.write(case, panel.answer(case).probabilities)
    found = audited(panel, stored(tmp_path), CASES, "full16")
    assert found["plain"]["all"]["kl_nats"] < 1e-5
    assert found["plain"]["all"]["agreement"] > 0.999
    assert found["augmented"]["all"]["kl_nats"] >= found["plain"]["all"]["kl_nats"]
    assert "full16" in found["sentence"]
    saved = Panel([member("m0", live=False)], ground)
    assert audited(saved, stored(tmp_path), CASES, "full16") == {"why": "its answers are saved"}
