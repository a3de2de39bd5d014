"""Settings, and their precision in Fabric's words."""

from __future__ import annotations

import pytest
import torch

from medkd.errors import UserError
from medkd.training.settings import Settings


@pytest.mark.parametrize(
    ("precision", "words"), [("auto", "32-true"), ("fp32", "32-true"), ("bf16", "bf16-mixed"), ("fp16", "16-mixed")]
)
def test_on_a_cpu(precision: str, words: str) -> None:
    assert Settings(precision=precision, device="cpu").fabric_precision() == words


@pytest.mark.parametrize(("bf16", "words"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, bf16: bool, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    for device in ("auto", "cuda"):
        assert Settings(device=device).fabric_precision() == words
        assert Settings(device=device, precision="fp32").fabric_precision() == "32-true"
    assert Settings(device="cpu").fabric_precision() == "32-true"


def test_an_unknown_precision_is_told() -> None:
    with pytest.raises(UserError, match="precision 'half' is not one of auto, fp32, bf16, fp16"):
        Settings(precision="half").fabric_precision()
