"""Simulated abdominal CT and MR in the layout of the MSD: data for a first run, for tests and for teaching.

Simulated data show that software works and how methods differ on a known problem; they prove nothing about patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medkd.data.formats import write_stored
from medkd.data.phantom_anatomy import ORGANS, Layer, abdomen
from medkd.data.phantom_space import Space, rotation, smooth_noise
from medkd.errors import UserError, nearest

CT = {
    # HU without contrast medium, in the arterial and in the portal venous phase
    "skin": (0, 0, 0), "fat": (-100, -100, -98), "muscle": (52, 56, 62), "lung": (-850, -850, -845),
    "heart": (42, 190, 140), "bowel": (35, 55, 75), "fluid": (8, 8, 8), "gas": (-950, -950, -950),
    "stool": (20, 20, 25), "pancreas": (40, 95, 90), "stomach": (38, 60, 75), "meal": (22, 22, 25),
    "spleen": (48, 115, 118), "liver": (58, 68, 106), "portal": (42, 60, 180), "cortex": (34, 180, 175),
    "medulla": (32, 85, 155), "sinus": (-45, -40, -30), "vein": (40, 75, 135), "blood": (42, 290, 160),
    "bone": (520, 520, 530), "marrow": (175, 180, 190), "disc": (85, 85, 90), "cord": (30, 30, 35),
    "lesion": (34, 42, 58), "air": (-1000, -1000, -1000),
}  # fmt: skip
MR = {
    # relative signal: T1 weighted, T2 weighted
    "skin": (0.4, 0.3), "fat": (0.95, 0.75), "muscle": (0.38, 0.2), "lung": (0.05, 0.05), "heart": (0.25, 0.3),
    "bowel": (0.4, 0.45), "fluid": (0.2, 1.0), "gas": (0.02, 0.02), "stool": (0.45, 0.4), "pancreas": (0.58, 0.42),
    "stomach": (0.42, 0.4), "meal": (0.3, 0.8), "spleen": (0.36, 0.58), "liver": (0.52, 0.34), "portal": (0.3, 0.2),
    "cortex": (0.5, 0.6), "medulla": (0.36, 0.72), "sinus": (0.75, 0.75), "vein": (0.22, 0.18), "blood": (0.16, 0.1),
    "bone": (0.08, 0.06), "marrow": (0.58, 0.42), "disc": (0.36, 0.5), "cord": (0.32, 0.8), "lesion": (0.38, 0.52),
    "air": (0.0, 0.0),
}  # fmt: skip
TEXTURE_HU = {"marrow": 45, "bone": 60, "stool": 110, "meal": 25, "bowel": 14, "lung": 25, "fat": 6, "cortex": 8}
MODALITIES = ("ct", "mr")
_VALUES = {"": 0, **{name: value for value, name in enumerate((*ORGANS, "lesion"), start=1)}}
PHASES = (0.15, 0.4, 0.45)
"""Share of scans without contrast, arterial and portal venous."""


def write_phantoms(
    out: Path,
    *,
    cases: int = 24,
    modality: str = "ct",
    seed: int = 0,
    unlabelled: int = 0,
    lesions: bool = False,
    shape: Sequence[int] = (96, 80, 48),
    spacing_mm: Sequence[float] = (3.4, 3.4, 5.0),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write simulated patients as an MSD task: ``imagesTr``, ``labelsTr``, ``imagesUn`` and ``dataset.json``.

    Args:
        out: folder to write to; files of the same name are replaced.
        cases: labelled patients.
        modality: ``ct`` (HU, three contrast phases) or ``mr`` (T1 and T2 weighted, bias field, arbitrary scale).
        seed: with the number of the case it decides every voxel.
        unlabelled: further patients without label.
        lesions: adds focal liver lesions as a class of their own.
        shape: voxels of the average patient along x, y and z.
        spacing_mm: voxel size of the average patient; patients differ by some per cent, slices by up to a fifth.
        progress: called with cases done and cases in all.

    Returns:
        ``out``.

    Raises:
        UserError: unknown modality, or numbers that make no dataset.
    """
    if modality not in MODALITIES:
        raise UserError(f"no phantom of modality {modality!r}{nearest(modality, MODALITIES)}: use ct or mr")
    if cases < 1 or unlabelled < 0:
        raise UserError(f"{cases} cases and {unlabelled} unlabelled ones make no dataset: give at least 1 and 0")
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 8 or min(spacing_mm) <= 0:
        raise UserError(
            f"shape {list(shape)} at {list(spacing_mm)} mm is no volume: give 3 sizes from 8 and 3 spacings in mm"
        )
    out = Path(out)
    names = ["background", *ORGANS, *(["lesion"] if lesions else [])]
    training: list[dict[str, str]] = []
    extra: list[dict[str, str]] = []
    total = cases + unlabelled
    for folder in ("imagesTr", "labelsTr", *(["imagesUn"] if unlabelled else [])):
        _make(out / folder)
    for index in range(total):
        image, label, affine = simulate(
            index, modality=modality, seed=seed, lesions=lesions, shape=shape, spacing_mm=spacing_mm
        )
        name = f"phantom_{index:03d}.nii.gz"
        if index < cases:
            _save(out / "imagesTr" / name, image, affine)
            _save(out / "labelsTr" / name, label.astype(np.uint8), affine)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        else:
            _save(out / "imagesUn" / name, image, affine)
            extra.append({"image": f"./imagesUn/{name}"})
        if progress is not None:
            progress(index + 1, total)
    description = {
        "name": f"Phantom{modality.upper()}",
        "description": "Simulated abdomens; no patient data.",
        "reference": "medkd",
        "licence": "CC0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT" if modality == "ct" else "MRI"},
        "labels": {str(value): name for value, name in enumerate(names)},
        "numTraining": cases,
        "numTest": 0,
        "training": training,
        "test": [],
        "unlabelled": extra,
        "simulation": {"seed": seed, "shape": list(shape), "spacing_mm": list(spacing_mm), "lesions": lesions},
    }
    _replace(out / "dataset.json", lambda part: part.write_text(json.dumps(description, indent=2), encoding="utf-8"))
    return out


def simulate(
    index: int,
    *,
    modality: str = "ct",
    seed: int = 0,
    lesions: bool = False,
    shape: Sequence[int] = (96, 80, 48),
    spacing_mm: Sequence[float] = (3.4, 3.4, 5.0),
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.float64]]:
    """Return one patient: image and label ``(X, Y, Z)`` in RAS axes, and the ``(4, 4)`` affine in mm."""
    rng = np.random.default_rng([seed, index])
    fat_mm = float(rng.uniform(9, 30))
    in_plane = 0.93 + 0.14 * (fat_mm - 9) / 21 + rng.normal(0, 0.015)  # the field of view follows the patient
    slices = float(rng.choice([0.8, 1.0, 1.0, 1.2]))
    spacing = np.array([spacing_mm[0] * in_plane, spacing_mm[1] * in_plane, spacing_mm[2] * slices]).round(3)
    size = (int(shape[0]), int(shape[1]), max(8, round(shape[2] / slices * rng.uniform(0.9, 1.1))))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(size) - 1) / 2 * spacing + [0, 0, 6]
    space = Space(_body_position(size, affine, rng), float(spacing[:2].mean()), rng)

    levels, texture = _levels(modality, rng)
    grain = smooth_noise(size, [max(n // 3, 4) for n in size], rng)
    image = np.full(size, levels["air"], np.float32)
    label = np.zeros(size, np.int16)
    layers = abdomen(space, fat_mm=fat_mm)
    for layer in layers:
        _paint(image, label, layer, levels, texture, grain)
    if lesions:
        for layer in _lesions(space, label):
            _paint(image, label, layer, levels, texture, grain)
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0.45), mode="nearest")  # the scanner's own blur
    return (_ct if modality == "ct" else _mr)(image, rng), label, affine


def _body_position(
    size: tuple[int, int, int], affine: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return ``(3, X, Y, Z)`` mm: where each voxel lies in the body once pose, build and deformation are undone."""
    world = [np.arange(n) * affine[axis, axis] + affine[axis, 3] for axis, n in enumerate(size)]
    position = np.stack(np.meshgrid(*world, indexing="ij")).astype(np.float32)
    position -= (rng.normal(0, 1, 3).clip(-2, 2) * [6, 5, 9]).astype(np.float32).reshape(3, 1, 1, 1)
    turn = rotation(rng.normal(0, 1, 3).clip(-2, 2) * [3, 2.5, 4])
    build = rng.normal(1, 0.045, 3).clip(0.9, 1.1)
    matrix = (turn.T / build[:, None]).astype(np.float32)
    position = np.tensordot(matrix, position, 1)
    for axis, mm in enumerate((3.5, 3.0, 5.0)):
        position[axis] += mm * smooth_noise(size, (5, 5, 5), rng)
    return position


def _levels(modality: str, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """Return the intensity of each tissue in one scan, and how far it varies within the tissue."""
    if modality == "ct":
        phase = int(rng.choice(3, p=PHASES))
        levels = {}
        for tissue, values in CT.items():
            spread = 0.0 if tissue in ("air", "gas") else 4 + 0.06 * abs(values[phase] - values[0])
            levels[tissue] = values[phase] + spread * float(rng.normal(0, 1))
        return levels, {tissue: float(TEXTURE_HU.get(tissue, 4)) for tissue in CT}
    weighting = int(rng.integers(2))
    signal = {tissue: max(0.0, values[weighting] * float(rng.normal(1, 0.06))) for tissue, values in MR.items()}
    return signal, {tissue: 0.06 * value for tissue, value in signal.items()}


def _paint(
    image: NDArray[np.float32],
    label: NDArray[np.int16],
    layer: Layer,
    levels: dict[str, float],
    texture: dict[str, float],
    grain: NDArray[np.float32],
) -> None:
    value = np.float32(levels[layer.tissue]) + np.float32(texture[layer.tissue]) * grain
    image += layer.occupancy * (value - image)
    if layer.organ is not None:
        label[layer.occupancy > 0.5] = _VALUES[layer.organ]


def _lesions(space: Space, label: NDArray[np.int16]) -> Iterator[Layer]:
    liver = label == ORGANS.index("liver") + 1
    inner = np.argwhere(ndimage.binary_erosion(liver, iterations=2))
    for _ in range(int(space.rng.integers(1, 4)) if len(inner) else 0):
        centre = space.position[(slice(None), *inner[space.rng.integers(len(inner))])]
        distance = space.ellipsoid(centre, space.rng.uniform(7, 17) * space.rng.uniform(0.8, 1.2, 3)) + space.wobble(
            1.5, (14, 12, 12)
        )
        yield Layer("lesion", space.fill(distance, 1.6) * liver, "lesion")


def _ct(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int16]:
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0.7, 0.7, 0.3))
    noise *= rng.uniform(9, 20) / noise.std()
    return np.round(image + noise).clip(-1024, 3071).astype(np.int16)


def _mr(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int16]:
    bias = np.exp(rng.uniform(0.12, 0.25) * smooth_noise(image.shape, (4, 4, 4), rng))
    sigma = rng.uniform(0.02, 0.04)
    real, imaginary = (sigma * rng.standard_normal(image.shape, np.float32) for _ in range(2))
    magnitude = np.hypot(image * bias + real, imaginary)
    return np.asarray(np.round(magnitude * np.exp(rng.uniform(np.log(150), np.log(2000)))), np.int16)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error}): choose another folder") from error


def _save(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    _replace(path, lambda part: write_stored(part, array, affine))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name("part_" + path.name)  # the suffix tells nibabel to compress
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}): free disk space or choose another folder") from error
