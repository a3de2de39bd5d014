from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medkd.report.slices import worst_slice
from medkd.report.summary import (
    Arm,
    Comparison,
    Curve,
    DataFacts,
    Fidelity,
    Lost,
    Parity,
    Provenance,
    Reliability,
    RunSummary,
    Slice,
    VolumeView,
)
from medkd.report.volumes import volume_view

LABELS = {"background": 0, "liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "pancreas": 5, "lesion": 6}
DIFFICULTY = {
    "liver": 0.03,
    "spleen": 0.04,
    "left kidney": 0.045,
    "right kidney": 0.04,
    "pancreas": 0.18,
    "lesion": 0.3,
}
LOSS = {"teachers": 0.0, "student": 0.12, "student.control": 0.27, "student.pseudo": 0.2}
ARMS = (
    Arm("teachers", "teacher", "Teacher ensemble", "mean of 3 networks", 38_412_006, 1.92e12, 21.4, 6120, 153_700_000),
    Arm("student", "student", "Student", "UNet 8-16-32-64", 318_214, 2.61e10, 1.47, 412, 1_310_000),
    Arm("student.control", "control", "Control", "no teacher, same steps", 318_214, 2.61e10, 1.46, 412, 1_310_000),
    Arm("student.pseudo", "pseudo", "Pseudo-labels", "hard teacher labels", 318_214, 2.61e10, 1.47, 412, 1_310_000),
)


def rows(cases: int = 24, seeds: int = 2) -> list[dict[str, object]]:
    draw = np.random.default_rng(7)
    found: list[dict[str, object]] = []
    for i in range(cases):
        hard = float(draw.gamma(2.0, 0.5))
        for label, difficulty in DIFFICULTY.items():
            absent = label == "lesion" and i % 3 == 1
            for arm, loss in LOSS.items():
                for seed in range(1 if arm == "teachers" else seeds):
                    error = difficulty * (0.6 + 0.5 * hard) * (1 + 2.2 * loss) * float(draw.normal(1, 0.08))
                    dice = float("nan") if absent else float(np.clip(1 - error, 0, 1))
                    found.append(
                        {
                            "arm": arm,
                            "stage": arm.split(".")[0],
                            "fold": i % 3,
                            "seed": seed,
                            "case": f"abd_{i:03d}",
                            "patient": f"p{i:03d}",
                            "label": label,
                            "dice": dice,
                            "hd95_mm": 38 * (1 - dice) + 1.2,
                            "nsd_2mm": 1 - 0.8 * (1 - dice),
                            "voxels_ref": 1000,
                            "volume_ref_ml": 12.5,
                        }
                    )
    return found


def volumes(seed: int, miss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, label, student and teacher of a small abdomen; ``miss`` shifts the student's pancreas, in voxels."""
    draw = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (110, 84, 30)), indexing="ij")

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        wobble = 1 + 0.07 * np.sin(0.35 * x + 0.5 * cy) * np.cos(0.3 * y + cx)
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < wobble

    where = {
        1: (74, 48, 17, 21, 20, 9),
        2: (28, 38, 18, 9, 12, 6),
        3: (36, 28, 12, 7, 7, 8),
        4: (72, 26, 11, 7, 7, 8),
        5: (50, 46, 14, 15, 5, 4),
        6: (80, 54, 18, 5, 4, 3),
    }
    body = ball(55, 42, 15, 50, 36, 200)
    label = np.zeros(x.shape, np.int16)
    student, teacher = label.copy(), label.copy()
    for value, (cx, cy, cz, rx, ry, rz) in where.items():
        label[ball(cx, cy, cz, rx, ry, rz)] = value
        off = miss if value in (5, 6) else 0.6
        student[ball(cx + off, cy - off / 2, cz, rx, ry * 0.92, rz)] = value
        teacher[ball(cx + off / 4, cy, cz, rx * 1.03, ry, rz)] = value
    level = np.array([40, 112, 122, 160, 160, 92, 70], float)
    image = np.where(body, level[label], -180.0)
    image[ball(55, 18, 15, 9, 8, 200) & (label == 0)] = 320
    image += draw.normal(0, 11, x.shape)
    return image.astype(np.float32), label, student, teacher


def pictures(count: int = 3) -> tuple[Slice, ...]:
    spacing = (3.2, 3.2, 5.0)
    planes = ("axial", "coronal", "axial", "sagittal")
    return tuple(_picture(i, planes[i % 4], spacing) for i in range(count))


def _picture(i: int, plane: str, spacing: tuple[float, float, float]) -> Slice:
    image, label, student, teacher = volumes(i, 3.0 + i)
    return worst_slice(f"abd_{17 - i:03d}", image, label, student, teacher, spacing, window=(-160, 260), planes=[plane])


def curve(arm: str, seed: int, *, kd: bool, title: str = "", steps: int = 4000) -> Curve:
    draw = np.random.default_rng(seed)
    lines: list[dict[str, object]] = []
    for step in range(20, steps + 1, 20):
        fall = float(np.exp(-step / 900))
        terms = {"supervised": 0.16 + 1.3 * fall + float(draw.normal(0, 0.03)) * (0.3 + fall)}
        if kd:
            terms["kd"] = 0.012 + 0.6 * fall + float(draw.gamma(2, 0.004))
        lines.append({"step": step, "terms": terms, "lr": 0.01})
        if step % 400 == 0:
            dice = LOSS_TOP[arm] * (1 - 0.7 * fall) + float(draw.normal(0, 0.006))
            lines.append(
                {"step": step, "scores": {"dice": dice, "dice/liver": dice + 0.05}, "best": dice, "seconds": 12}
            )
    return Curve(arm, tuple(lines), title)


LOSS_TOP = {"teachers": 0.9, "student": 0.87, "student.control": 0.84, "student.pseudo": 0.855}


def view(case: str = "abd_017", seed: int = 0, **changes: object) -> VolumeView:
    image, label, student, teacher = volumes(seed, 4.0)
    masks = {"teachers": teacher, "student": student, "student.control": np.roll(student, 2, axis=0)}
    affine = np.diag([3.2, 3.2, 5.0, 1.0])
    affine[:3, 3] = (-170, -130, -60)
    return volume_view(case, image, label, masks, affine, window=(-160, 240), **changes)


def evidence() -> dict[str, object]:
    """What a run says beyond Dice: agreement, calibration and losses by size."""
    share = {"student": {"foreground": 0.97, "boundary": 0.84, "background": 0.9997}}
    share["student.control"] = {"foreground": 0.95, "boundary": 0.79, "background": 0.9996}
    bins = tuple((c, c - o, s) for c, o, s in ((0.45, 0.1, 0.01), (0.7, 0.08, 0.04), (0.97, 0.02, 0.95)))
    return {
        "fidelity": tuple(
            Fidelity(arm, "teachers", region, value, 1.3 * (1 - value), 40_000)
            for arm, of in share.items()
            for region, value in of.items()
        ),
        "reliability": (Reliability("teachers", 0.01, 0.05), Reliability("student", 0.023, 0.07, bins)),
        "lost": (
            Lost("pancreas", "small", 8, 0.71, 0.6, 0.55, -0.11, "31 to 55 ml"),
            Lost("liver", "large", 8, 0.96, 0.962, 0.95, 0.002),
            Lost("lesion", "small", 2, 0.5, 0.2, 0.2, -0.3),
        ),
    }


@pytest.fixture(autouse=True)
def without_niivue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine has NiiVue changes no test; one that needs it says so."""
    monkeypatch.setenv("MEDKD_NIIVUE", "")


@pytest.fixture(scope="session")
def pictured() -> tuple[Slice, ...]:
    return pictures(2)


@pytest.fixture
def make_run(pictured: tuple[Slice, ...]) -> Callable[..., RunSummary]:
    def make(**changes: object) -> RunSummary:
        return example(**{"slices": pictured, **changes})

    return make


def example(**changes: object) -> RunSummary:
    per_class = [
        {"label": label, "difference": 0.33 * d, "ci_low": 0.2 * d, "ci_high": 0.46 * d, "verdict": "helped"}
        for label, d in DIFFICULTY.items()
    ]
    values: dict[str, object] = {
        "name": "abdomen-ct",
        "arms": ARMS,
        "rows": tuple(rows()),
        "comparisons": (
            Comparison(
                "student",
                "student.control",
                "dice",
                "Distillation helped: mean Dice +0.034 (95 % interval +0.027 to +0.041, Wilcoxon p < 0.0001) over 24 "
                "cases and 2 seeds.",
                "helped",
                0.0341,
                0.0272,
                0.0411,
                0.0000021,
                24,
                24,
                2,
                tuple(per_class),
            ),
            Comparison(
                "student",
                "teachers",
                "dice",
                "The student is worse than the teachers.",
                "hurt",
                -0.0253,
                -0.0311,
                -0.0201,
                0.0000008,
                24,
                24,
                2,
            ),
            Comparison(
                "student",
                "student.control",
                "hd95_mm",
                "Distillation helped.",
                "helped",
                -1.31,
                -1.72,
                -0.92,
                0.00004,
                24,
                24,
                2,
                (),
                ("Lesion is absent from 8 cases, which take no part.",),
            ),
        ),
        "curves": tuple(
            [curve("teachers", i, kd=False, title=name) for i, name in enumerate(("DynUNet", "SegResNet", "UNet"))]
            + [curve("student", 10 + i, kd=True, title=f"seed {i}") for i in range(2)]
            + [curve("student.control", 20 + i, kd=False, title=f"seed {i}") for i in range(2)]
        ),
        "data": DataFacts("Abdomen CT", "CC-BY-SA 4.0", "", LABELS, {"train": 80, "validation": 16, "test": 24}),
        "plan_notes": (
            "Spacing 1.5 × 1.5 × 2.0 mm: the median of the training cases.",
            "Patch 96 × 96 × 64 voxels: fits 6 GB with batch 2.",
            "No mirroring left to right: the labels tell left from right.",
        ),
        "config": "name: abdomen-ct\ndata: {source: data/abdomen, folds: 3, seed: 0}\ntrain: {steps: 4000, batch: 2}\n"
        "stages:\n  student:\n    methods: [supervised, {name: kd, temperature: 2}]\n",
        "cost_note": "median of 10 runs on one 256 × 256 × 96 volume, sliding window, batch 1, 8 threads.",
        "provenance": Provenance(
            "2026-11-24T10:12:00Z",
            "medkd run pipelines/abdomen.yaml",
            "AMD EPYC 7313, 8 threads",
            {"medkd": "0.1.0", "torch": "2.8.0", "monai": "1.6.0"},
            {"train/teachers/0": "b7c1e09a44d2", "train/student/0": "5f0e1c2ab913"},
            {"train/teachers/0": 5312.0, "train/student/0": 1204.3},
            "blake2b:9f21c0de77aa41b0",
            {"teachers": "Apache-2.0"},
            "No teacher saw a validation or test case of the student.",
        ),
        "parity": (
            Parity("onnx", 4, 2.4e-6, 1.0, {"liver": 1.0, "lesion": 0.9998}, "onnxruntime 1.20, CPU"),
            Parity("bundle", 4, 0.0, 1.0, {"liver": 1.0, "lesion": 1.0}, "MONAI 1.6"),
        ),
        "warnings": ("Two seeds only: the interval knows little of how training varies.",),
    }
    return RunSummary(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(name="evidence")
def evidence_of_a_run() -> dict[str, object]:
    return evidence()


@pytest.fixture
def make_view() -> Callable[..., VolumeView]:
    return view
