"""Names of metrics."""

import pytest

from medkd.errors import UserError
from medkd.evaluation import metrics


def test_directions() -> None:
    assert metrics.higher_is_better("dice")
    assert metrics.higher_is_better("nsd_0.5mm")
    assert metrics.higher_is_better("lesion_f1_iou0.5")
    assert not metrics.higher_is_better("hd95_mm")
    assert not metrics.higher_is_better("volume_error_ml")
    assert not metrics.higher_is_better("lesion_missed_iou.5")


@pytest.mark.parametrize("name", ["hd95", "nsd_mm", "nsd_1", "lesion_f1_iou2", "lesion_f1_iou0", "lesions_f1", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no metric is called"):
        metrics.higher_is_better(name)


def test_numbers_in_names() -> None:
    assert metrics.tolerance_mm("nsd_2.5mm") == 2.5
    assert metrics.lesion_metric("lesion_recall") == ("lesion_recall", metrics.MATCH_IOU)
    assert metrics.lesion_metric("lesion_recall_iou0.5") == ("lesion_recall", 0.5)
    assert metrics.lesion_metric("dice") is None


@pytest.mark.parametrize(
    ("label", "is_one"),
    [("liver", False), ("liver tumour", True), ("MS_Lesion", True), ("brain_metastases", True), ("tumor", True)],
)
def test_classes_that_say_they_are_lesions(label: str, is_one: bool) -> None:
    assert metrics.names_lesion(label) is is_one
