"""EMKD against the released code: factor 1 for every term of two classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from medkd.methods.relations.emkd import importance_maps, prediction_maps, region_affinity, segmentation


def test_emkd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("emkd"):
        given = case.inputs
        if case.name.startswith("prediction"):
            case.check(prediction_maps(given["student_logits"], given["teacher_logits"], case.hyper["T"]))
        elif case.name.startswith("importance"):
            case.check(importance_maps(given["student_feat"], given["teacher_feat"], case.hyper["exponent"]))
        elif case.name.startswith("region"):
            s, t = given["student_feat"], given["teacher_feat"]
            masks = F.interpolate(given["mask_onehot"], s.shape[2:], mode="nearest")  # the release's; ours is by area
            case.check(region_affinity(s, t, masks))
        else:
            label = given["mask_onehot"].argmax(1)
            focal, dice = segmentation(given["student_logits"], label, case.hyper["gamma"], case.hyper["smooth"])
            case.near(focal, "focal")
            case.near(dice, "dice")
            case.check(case.hyper["ce_weight"] * focal + (1 - case.hyper["ce_weight"]) * dice)
