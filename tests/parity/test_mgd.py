"""MGD against the authors' released code, for masked places and masked channels, with the draws given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from medkd.methods.features.mgd import MGD, kept_of, mgd
from medkd.types import Anatomy, Tap


def test_mgd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("mgd"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        kind = "channel" if case.name.startswith("channel") else "voxel"
        stride = (1,) * (s.ndim - 2)
        method = MGD(tap="x", ratio=case.hyper["mask_ratio"], mask=kind)
        method.setup(
            Anatomy({"x": Tap(s.shape[1], stride)}, 2, len(stride)),
            Anatomy({"x": Tap(t.shape[1], stride)}, 2, len(stride)),
        )
        kept = kept_of(case.inputs["uniform_draw"], case.hyper["mask_ratio"], mask=kind)
        assert torch.equal(kept, case.inputs["mask_kept"].bool())
        adapter, generator = method.adapters[0], method.generators[0]
        align = case.weights(adapter, {"conv": "mod.align"}) if s.shape[1] != t.shape[1] else {}
        weights = case.weights(generator, {"0": "mod.generation.0", "2": "mod.generation.2"})
        aligned = functional_call(adapter, align, (s,))

        def generate(x: Tensor, generator: Any = generator, weights: Any = weights) -> Tensor:
            return functional_call(generator, weights, (x,))

        # theirs is the sum over channels and voxels, mean over the batch, times alpha
        case.check(case.hyper["alpha"] * t[0].numel() * mgd(aligned, t, generate, kept))
