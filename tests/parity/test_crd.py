"""CRD against RepDistiller: factor 1, with its Z of one batch and its memory after the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from medkd.methods.parts import unit
from medkd.methods.relations.crd import contrastive, moved, normaliser, scores


def test_crd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("crd"):
        given, hyper = case.inputs, case.hyper
        loss, where, rows = 0, given["contrast_index"], hyper["n_data"]
        embedded = {
            side: unit(F.linear(given[f"{name}_feat"], given[f"embed_{side}.weight"], given[f"embed_{side}.bias"]))
            for side, name in (("s", "student"), ("t", "teacher"))
        }
        for side, own, other in (("s", "student", "teacher"), ("t", "teacher", "student")):
            score = scores(embedded[side], given[f"memory_{other}"][where], hyper["nce_t"])
            z = given.get(f"Z_{own}_anchor", normaliser(score, rows))
            case.near(z.squeeze(), f"Z_{own}_anchor")
            loss = loss + contrastive(score / z, rows, hyper["eps"])
            memory = given[f"memory_{own}"].clone()
            at = given["index"]
            memory[at] = moved(memory[at], embedded[side], hyper["momentum"])
            case.near(memory, f"memory_{own}_after")
        case.check(loss)
