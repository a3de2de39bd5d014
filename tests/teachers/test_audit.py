"""The audit sees what an encoding loses, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.data.store import read_patch
from medkd.data.transforms import Augment
from medkd.errors import UserError
from medkd.teachers.audit import REGIONS, audit, sentence, voxel_kl
from medkd.teachers.cache import TargetStore
from medkd.teachers.encodings import Encoding
from medkd.types import Batch

SHAPE = (24, 24, 24)
PATCH = (16, 16, 16)


def teacher(image: torch.Tensor) -> torch.Tensor:
    """Return a voxel's classes from its value alone, so that the teacher of a moved image is the moved teacher."""
    levels = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1, 1)
    return torch.softmax(-12 * (image - levels).square(), dim=1)


def scene() -> torch.Tensor:
    """Return an image ``(1, *S)``: two balls with smooth borders."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    far = [(grid - torch.tensor(c).reshape(3, 1, 1, 1)).square().sum(0).sqrt() for c in ([8.0] * 3, [16.0] * 3)]
    return (torch.sigmoid(6 - far[0]) + 2 * torch.sigmoid(5 - far[1])).unsqueeze(0)


def batches(folder: Path, encoding: Encoding, level: str = "none", trust: np.ndarray | None = None) -> list[Batch]:
    store, image = TargetStore(folder, encoding=encoding), scene()
    store.write("a", teacher(image[None])[0].numpy(), trust)
    augment, rng = Augment(level, PATCH, mirror_axes=(0, 1, 2)), np.random.default_rng(0)
    augment._intensity.transforms = ()
    made = []
    for start in ((4, 4, 4), (0, 3, 8), (2, 2, 2)):
        affine = level == "default"
        size = augment.margin if affine else PATCH
        shown, target = read_patch(image.numpy(), start, size, 0), read_patch(store.read("a"), start, size, 0)
        given = store.trust("a")
        patch = augment(
            shown,
            np.zeros(size, np.int64),
            target,
            rng,
            affine=affine,
            trust=None if given is None else read_patch(given, start, size, 0),
        )
        made.append(
            Batch(patch.image[None], patch.label[None], ("a",), target=patch.target[None], trust=patch.trust[None])
        )
    return made


def test_an_exact_target_is_the_live_answer(tmp_path: Path) -> None:
    found = audit(batches(tmp_path, Encoding("full16"), "light"), teacher)
    assert set(found) == set(REGIONS)
    assert found["all"].kl_nats < 1e-6
    assert found["all"].agreement > 0.998  # float16 makes some ties
    assert found["all"].voxels == 3 * 16**3
    parts = found["boundary"].voxels + found["background"].voxels
    assert parts <= found["all"].voxels <= parts + found["foreground"].voxels


def test_coarser_encodings_lose_more_and_most_at_the_border(tmp_path: Path) -> None:
    found = {
        name: audit(batches(tmp_path / name, encoding), teacher)
        for name, encoding in (("uint8", Encoding("uint8")), ("topk", Encoding("topk", 1)))
    }
    assert 1e-9 < found["uint8"]["all"].kl_nats < 1e-4 < found["topk"]["all"].kl_nats
    assert found["topk"]["boundary"].kl_nats > 3 * found["topk"]["background"].kl_nats
    assert found["topk"]["all"].worst_nats >= found["topk"]["boundary"].kl_nats
    assert found["topk"]["all"].worst_case == "a"
    assert found["uint8"]["all"].softened_nats < 1e-3


def test_a_moved_target_is_near_the_answer_about_the_moved_image(tmp_path: Path) -> None:
    found = audit(batches(tmp_path, Encoding("uint8"), "default"), teacher)
    assert found["all"].kl_nats < 0.05
    assert found["all"].agreement > 0.97


def test_it_fails_where_the_target_is_another(tmp_path: Path) -> None:
    made = batches(tmp_path, Encoding("full16"))
    for batch in made:
        assert batch.target is not None
        batch.target.copy_(batch.target.flip(2))
    found = audit(made, teacher)
    assert found["all"].kl_nats > 0.1
    assert found["foreground"].agreement < 0.9


def test_what_is_not_trusted_does_not_count(tmp_path: Path) -> None:
    trust = np.ones((1, *SHAPE), np.float32)
    trust[:, :, :, 12:] = 0
    made = batches(tmp_path, Encoding("full16"), trust=trust)
    for batch in made:
        assert batch.target is not None
        batch.target[(batch.trust == 0).expand_as(batch.target)] = 0.5
    found = audit(made, teacher)
    assert found["all"].kl_nats < 1e-6
    assert found["all"].voxels == 16 * 16 * (8 + 4 + 10)
    inner = audit(made, teacher, whole=False)
    assert inner["all"].voxels == 12 * 12 * (6 + 2 + 8)


def test_what_cannot_be_audited_is_told(tmp_path: Path) -> None:
    made = batches(tmp_path, Encoding("full16"))
    bare = Batch(made[0].image, made[0].label)
    with pytest.raises(UserError, match="runs live"):
        audit([bare], teacher)
    for batch in made:
        assert batch.trust is not None
        batch.trust.zero_()
    with pytest.raises(UserError, match="no voxel"):
        audit(made, teacher)


def test_it_says_what_it_found(tmp_path: Path) -> None:
    text = sentence(audit(batches(tmp_path, Encoding("uint8")), teacher), "uint8")
    assert text.startswith(
        "stored targets (uint8) against the live teacher on 12,288 voxels of augmented patches: mean KL "
    )
    assert "same class in" in text
    assert "nats in a" in text


def test_kl_is_that_of_softened_distributions() -> None:
    p, q = torch.tensor([0.8, 0.2]).reshape(1, 2, 1), torch.tensor([0.5, 0.5]).reshape(1, 2, 1)
    assert float(voxel_kl(p, q)) == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))
    soft = np.sqrt([0.8, 0.2]) / np.sqrt([0.8, 0.2]).sum()
    assert float(voxel_kl(p, q, 2.0)) == pytest.approx(float((soft * np.log(2 * soft)).sum()))
    zero = torch.tensor([1.0, 0.0]).reshape(1, 2, 1)
    assert torch.isfinite(voxel_kl(q, zero)).all()
