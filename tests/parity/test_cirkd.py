"""CIRKD against the released code: factor 1. Its enqueue of voxels is random and faulty, and left out there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.parts import unit
from medkd.methods.relations.cirkd import ClassMemory, cross_image, memory_kl, projector, region_rows
from medkd.types import IGNORE


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).flatten(0, -2)


def test_cirkd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("cirkd"):
        given, hyper = case.inputs, case.hyper
        if case.name.startswith("pixel_batch"):
            case.check(cross_image(given["student_feat"], given["teacher_feat"], hyper["tau"]))
        elif case.name.startswith("memory"):
            s, t, label = given["student_feat"], given["teacher_feat"], given["label"]
            head = projector(s.shape[1], t.shape[1]).double()
            # the release normalises over every voxel and then drops those without a label
            weights = {own: given[f"project_head.{own}"].reshape(p.shape) for own, p in head.named_parameters()}
            projected = torch.func.functional_call(head, weights, (rows(s),))
            known = (label != IGNORE).flatten()
            terms = []
            for kind in ("pixel", "region"):
                keys = given[f"{kind}_queue"][:, given[f"{kind}_index"]].flatten(0, 1)
                term = memory_kl(projected, rows(t), keys, hyper["tau"], hyper["kd_temperature"], known)
                case.near(term, f"{kind}_term")
                terms.append(term)
            case.check(sum(terms))
        else:
            queue, start = given["region_queue"], given["region_ptr"]
            memory = ClassMemory(*queue.shape).double()
            memory.rows.copy_(queue)
            memory.at.copy_(start)
            memory.write(*region_rows(unit(given["teacher_feat"]), given["label"], len(queue)))
            case.near(memory.rows, "region_queue_after")
            case.near(memory.at.double(), "region_ptr_after")
