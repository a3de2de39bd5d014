"""The same metrics of one case by medkd, DeepMind's surface-distance and MONAI: equal numbers, seconds, memory.

    python benchmarks/metrics.py            # a small volume, in a minute
    python benchmarks/metrics.py --full     # 512 x 512 x 300 voxels, 14 classes, some ten minutes

Dice, HD95, ASSD, and NSD at two tolerances of every class. Each program runs in a process of its own, on one thread, on
the same two label maps; a number that differs by more than 1e-4 is an error. Memory is the peak of the process over
what it held with both maps loaded. The packages: `pip install medkd[dev]`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACING_MM = (0.78, 0.78, 1.25)
TOLERANCES_MM = (1.0, 2.0)
LIMIT = 1e-4
Labels = NDArray[np.uint8]
Numbers = dict[str, list[float]]


def phantom(shape: Sequence[int], classes: int, seed: int) -> tuple[Labels, Labels]:
    """Return prediction and reference: bumpy ellipsoids of falling size, wrong by a voxel or two at the border."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(seed)
    pred, ref = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for value, part in enumerate(np.geomspace(0.2, 0.025, classes), start=1):
        radii = np.minimum(part * min(shape[:2]) * rng.uniform(0.7, 1.3, 3), 0.3 * np.array(shape))
        centre = [rng.uniform(1.3 * radius, side - 1.3 * radius) for radius, side in zip(radii, shape, strict=True)]
        low = [max(0, int(c - 1.5 * r) - 2) for c, r in zip(centre, radii, strict=True)]
        high = [min(s, int(c + 1.5 * r) + 3) for c, r, s in zip(centre, radii, shape, strict=True)]
        size = [b - a for a, b in zip(low, high, strict=True)]

        def bumps(voxels: float, height: float, size: list[int] = size) -> NDArray[np.float32]:
            coarse = rng.standard_normal([max(2, round(side / voxels)) + 1 for side in size]).astype(np.float32)
            return height * zoom(coarse, [s / c for s, c in zip(size, coarse.shape, strict=True)], order=1)

        axes = [((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(low, high, centre, radii, strict=True)]
        level = np.sqrt(sum(np.ix_(*axes))).astype(np.float32) + bumps(25, 0.12)  # type: ignore[arg-type]
        wrong = bumps(8, 1.5 / radii.mean()) + bumps(3, 0.6 / radii.mean())
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        ref[box][level < 1] = value
        pred[box][level + wrong < 1] = value
    return pred, ref


def medkd_numbers(pred: Labels, ref: Labels, classes: int, convention: Any) -> Numbers:
    from medkd.evaluation.measure import measure_case

    metrics = ("dice", "hd95_mm", "assd_mm", *(f"nsd_{t:g}mm" for t in TOLERANCES_MM))
    labels = {str(value): value for value in range(1, classes + 1)}
    lines = measure_case(pred, ref, SPACING_MM, labels, metrics, convention=convention)
    return {name: [float(str(line[name])) for line in lines] for name in metrics}


def surface_distance_numbers(pred: Labels, ref: Labels, classes: int) -> Numbers:
    import surface_distance as sd

    found: Numbers = {}
    for value in range(1, classes + 1):
        mask_ref, mask_pred = ref == value, pred == value
        one = sd.compute_surface_distances(mask_ref, mask_pred, SPACING_MM)
        area_ref, area_pred = one["surfel_areas_gt"], one["surfel_areas_pred"]
        far = (one["distances_gt_to_pred"] * area_ref).sum() + (one["distances_pred_to_gt"] * area_pred).sum()
        found.setdefault("dice", []).append(sd.compute_dice_coefficient(mask_ref, mask_pred))
        found.setdefault("hd95_mm", []).append(sd.compute_robust_hausdorff(one, 95))
        found.setdefault("assd_mm", []).append(far / (area_ref.sum() + area_pred.sum()))
        for t in TOLERANCES_MM:
            found.setdefault(f"nsd_{t:g}mm", []).append(sd.compute_surface_dice_at_tolerance(one, t))
    return found


def monai_numbers(pred: Labels, ref: Labels, classes: int) -> Numbers:
    """Class by class: all classes at once would need a one-hot volume of gigabytes, and are a loop inside as well."""
    import torch
    from monai import metrics as m

    torch.set_num_threads(1)
    found: Numbers = {}
    for value in range(1, classes + 1):
        two = [torch.from_numpy(array == value)[None, None] for array in (pred, ref)]
        given: dict[str, Any] = {"include_background": True, "spacing": SPACING_MM}
        found.setdefault("dice", []).append(m.compute_dice(*two).item())
        found.setdefault("hd95_mm", []).append(m.compute_hausdorff_distance(*two, percentile=95, **given).item())
        found.setdefault("assd_mm", []).append(m.compute_average_surface_distance(*two, symmetric=True, **given).item())
        for t in TOLERANCES_MM:
            nsd = m.compute_surface_dice(*two, class_thresholds=[t], **given).item()
            found.setdefault(f"nsd_{t:g}mm", []).append(nsd)
    return found


PROGRAMS: dict[str, Callable[[Labels, Labels, int], Numbers]] = {
    "medkd, surfels": lambda *given: medkd_numbers(*given, "surfel"),
    "surface-distance": surface_distance_numbers,
    "medkd, boundary voxels": lambda *given: medkd_numbers(*given, "voxel"),
    "MONAI": monai_numbers,
}
PAIRS = (("surface-distance", "medkd, surfels"), ("MONAI", "medkd, boundary voxels"))


def measured(name: str, folder: Path, classes: int) -> dict[str, Any]:
    """Run one program here, once on a small corner to load what it needs, then on the whole."""
    warnings.simplefilter("ignore")
    pred, ref = (np.load(folder / f"{which}.npy") for which in ("pred", "ref"))
    dot = np.zeros((6, 6, 6), np.uint8)
    dot[2:4, 2:4, 2:4] = 1
    PROGRAMS[name](dot, dot, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    numbers = PROGRAMS[name](pred, ref, classes)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes on Linux
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak * 1024 / 1e6, "numbers": numbers}


def worst(mine: Numbers, theirs: Numbers) -> float:
    assert mine.keys() == theirs.keys()
    return max(abs(a - b) for name in mine for a, b in zip(mine[name], theirs[name], strict=True))


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="512 x 512 x 300 voxels and 14 classes")
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 160, 96))
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write all numbers")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape, classes = ((512, 512, 300), 14) if given.full else (tuple(given.shape), given.classes)
    if given.program == "phantom":
        for name, array in zip(("pred", "ref"), phantom(shape, classes, given.seed), strict=True):
            np.save(given.folder / f"{name}.npy", array)
        return 0
    if given.program:
        print(json.dumps(measured(given.program, given.folder, classes)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        size = ["--shape", *map(str, shape), "--classes", str(classes), "--seed", str(given.seed)]
        # The phantom too is made elsewhere: on Linux a process begins with the peak of the one that started it.
        for name in ("phantom", *PROGRAMS):
            print(f"{name} ...", file=sys.stderr)
            command = [sys.executable, __file__, "--program", name, "--folder", folder, *size]
            done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            if done.stdout:
                found[name] = json.loads(done.stdout.splitlines()[-1])
    print(f"{' x '.join(map(str, shape))} voxels, {classes} classes, one thread, {machine()}")
    head = ("seconds", "CPU s", "peak MB", "ratio", "CPU ratio", "largest difference")
    print(f"{'program':24}" + "".join(f"{title:>{max(10, len(title) + 2)}}" for title in head))
    for peer, own in PAIRS:
        ratios = [found[peer][clock] / found[own][clock] for clock in ("seconds", "cpu")]
        gap = worst(found[own]["numbers"], found[peer]["numbers"])
        for name, rest in ((own, ""), (peer, f"{ratios[0]:10.1f}{ratios[1]:11.1f}{gap:20.1e}")):
            one = found[name]
            print(f"{name:24}{one['seconds']:10.2f}{one['cpu']:10.2f}{one['peak_mb']:10.0f}{rest}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    gaps = {peer: worst(found[own]["numbers"], found[peer]["numbers"]) for peer, own in PAIRS}
    for peer, gap in gaps.items():
        if gap > LIMIT:
            print(f"{peer} differs by {gap:.2g}, more than {LIMIT:g}", file=sys.stderr)
    return int(any(gap > LIMIT for gap in gaps.values()))


if __name__ == "__main__":
    sys.exit(main())
