"""Numbers from the papers' released code: ``parity("cwd")`` gives its cases, ``case.check(loss)`` compares."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One call of released code.

    Args:
        name: of the case.
        hyper: its hyper-parameters.
        inputs: name -> float64 leaf (int64 for integers); those with a reference gradient require one.
        outputs: name -> float64; ``loss`` is the scalar, the others its parts.
        grads: name -> gradient of ``loss`` with respect to the input.
        facts: all that the index says of the case: reduction, quirk, relation to the clean form.
    """

    name: str
    hyper: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def near(self, ours: Tensor, output: str, rel: float = 1e-5) -> None:
        """Fail unless ``ours`` is the reference output, relative to its largest number."""
        _near(ours, self.outputs[output], rel, f"{self.name}: {output}")

    def check(self, loss: Tensor, *, value: float = 1e-5, gradient: float = 1e-4) -> None:
        """Fail unless ``loss``, brought to the reference's reduction, and its gradients are the reference's."""
        self.near(loss, "loss", value)
        leaves = {name: self.inputs[name] for name in self.grads}
        ours = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        for (name, leaf), grad in zip(leaves.items(), ours, strict=True):
            got = torch.zeros_like(leaf) if grad is None else grad
            _near(got, self.grads[name], gradient, f"{self.name}: gradient of {name}")

    def weights(self, module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the reference's weights by our names, for ``torch.func.functional_call(module, ...)``.

        ``names``: our parameter or a beginning of it -> the reference's. Every parameter of ``module`` must be found.
        """
        found: dict[str, Tensor] = {}
        for own, parameter in module.named_parameters():
            start = max((n for n in names if own == n or own.startswith(f"{n}.")), key=len)
            found[own] = self.inputs[names[start] + own[len(start) :]].reshape(parameter.shape)
        return found


def _near(ours: Tensor, reference: Tensor, rel: float, what: str) -> None:
    ours = ours.detach()
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, reference {tuple(reference.shape)}"
    scale = float(reference.abs().max())
    error = float((ours - reference).abs().max())
    assert error <= rel * scale, f"{what}: off by {error / (scale or 1.0):.2e} of {scale:.6g}"


def _folder() -> Path:
    default = Path(__file__).parents[3] / "shared" / "parity" / "open"
    return Path(os.environ.get("MEDKD_PARITY", default))


def _load(folder: Path, file: str, facts: Mapping[str, Any]) -> Case:
    parts: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}, "grad": {}}
    with np.load(folder / file) as arrays:
        for key in arrays.files:
            case, _, rest = key.partition("/")
            if case == facts["name"]:
                part, _, name = rest.partition("/")
                whole = np.issubdtype(arrays[key].dtype, np.integer)
                parts[part][name] = torch.from_numpy(arrays[key].astype(np.int64 if whole else np.float64))
    for name in parts["grad"]:
        parts["in"][name].requires_grad_()
    return Case(facts["name"], facts["hyper"], parts["in"], parts["out"], parts["grad"], facts)


@pytest.fixture
def parity() -> Callable[[str], list[Case]]:
    """Return the cases of a key, from $MEDKD_PARITY or ``shared/parity/open`` beside the repository; skip without."""

    def cases(key: str) -> list[Case]:
        folder = _folder()
        if not (folder / "index.json").is_file():
            pytest.skip(f"parity of {key} needs reference numbers, which are not in {folder}; set MEDKD_PARITY")
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if key not in index:
            pytest.skip(f"parity of {key}: {folder} has no such key")
        return [_load(folder, index[key]["file"], facts) for facts in index[key]["cases"]]

    return cases
