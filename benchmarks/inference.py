"""Sliding windows and the way back to the scan's grid by MONAI and by medkd: seconds, peak memory, agreement.

    python benchmarks/inference.py            # a small scan, in a minute
    python benchmarks/inference.py --full     # 512 x 512 x 300 voxels at 0.78 x 0.78 x 1.25 mm, 14 and 118 classes

Both start from one image resampled to the voxels that the network knows, and end with the label on the scan's grid.
MONAI: `sliding_window_inference` with its default buffers and Gaussian weights, softmax, all classes resampled to the
scan (trilinear), arg-max. medkd: `predict_back`, once as `medkd predict` does ("medkd") and once with the logits of all
classes blended, as for a network without a pointwise head ("medkd, logits"). Networks: a student of about 30 000
weights that works at half the resolution, and a single 1 x 1 x 1 convolution, which leaves the machinery alone. Their
classes are bands of the phantom's intensities, so that borders lie where they lie in scans: most voxels are sure.

Each program runs in a process of its own, on one thread. Memory is the peak of the process over what it held with the
image loaded (on a GPU, what torch held at most). A program is stopped before it takes more memory than is free: "did
not fit". Then both run again on a scan of half the sides, for the ratio.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPACING_MM = (0.78, 0.78, 1.25)
NETWORK_MM = 1.5
FREE_SHARE = 0.85
AGREE = 0.999
"""Share of voxels in which the two must agree; they lay their windows a little differently."""
PROGRAMS = ("MONAI", "medkd", "medkd, logits")
NETWORKS = ("student", "pointwise")


def prepared_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(round(side * mm / NETWORK_MM) for side, mm in zip(shape, SPACING_MM, strict=True))


def phantom(shape: Sequence[int], seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a scan of 24 ellipsoids in a body in air, values in [0, 1] with a little noise, ``(1, *shape)``."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    grid = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]

    def paint(centre: Any, radii: Any, value: float) -> None:
        axes = [((line - c) / r) ** 2 for line, c, r in zip(grid, centre, radii, strict=True)]
        x, y, z = np.ix_(*axes)
        image[x + y + z < 1] = value

    paint((0, 0, 0), (0.8, 0.6, 1.4), 0.03)
    for value in np.linspace(0.1, 1, 24):
        paint(rng.uniform(-0.4, 0.4, 3), rng.uniform(0.05, 0.25, 3), value)
    image += rng.normal(0, 0.0005, shape).astype(np.float32)
    return image[None]


def build(name: str, classes: int) -> Any:
    """Return a network whose class ``k`` is the intensities nearest to ``k / K``."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    centres = torch.arange(classes) / classes
    sharp = 10 * classes**2  # a margin of a few nats between neighbours, whatever their number
    scale, offset = 2 * sharp * centres, -sharp * centres**2

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            body = [nn.Conv3d(1, 24, 2, stride=2), nn.ReLU(), nn.Conv3d(24, 24, 3, padding=1), nn.ReLU()]
            self.body = nn.Sequential(*body, nn.Conv3d(24, 24, 3, padding=1), nn.ReLU())
            self.up = nn.ConvTranspose3d(24, 8, 2, stride=2)
            self.head = nn.Conv3d(9, classes, 1)

        def forward(self, image: Any) -> Any:
            return self.head(torch.cat([self.up(self.body(image)), image], 1))

    network = Student() if name == "student" else nn.Sequential(nn.Conv3d(1, classes, 1))
    with torch.no_grad():
        head: Any = network.head if isinstance(network, Student) else network[0]
        head.weight.mul_(0.1)
        head.weight[:, -1] = scale.view(-1, 1, 1, 1)
        head.bias.copy_(offset)
    return network.eval()


def by_monai(network: Any, image: Any, shape: Sequence[int], patch: Sequence[int], device: str) -> Any:
    import torch
    from monai.inferers import sliding_window_inference
    from monai.transforms import Activations, AsDiscrete, Resize

    with torch.inference_mode():
        scores = sliding_window_inference(image[None].to(device), patch, 1, network, overlap=0.5, mode="gaussian")[0]
        scores = Activations(softmax=True)(scores)
        scores = Resize(shape, mode="trilinear")(scores)
        return AsDiscrete(argmax=True)(scores)[0].to("cpu", torch.int16).numpy()


def by_medkd(network: Any, image: Any, shape: Sequence[int], patch: Sequence[int], device: str, *, defer: bool) -> Any:
    import torch

    from medkd.data.preprocess import Restore
    from medkd.data.volume import Geometry
    from medkd.inference.heads import defer_head
    from medkd.inference.slabs import predict_back

    affine = np.diag([*SPACING_MM, 1.0])
    x, y, z = shape
    restore = Restore(Geometry((x, y, z), affine), affine, (x, y, z), tuple(image.shape[1:]), (NETWORK_MM,) * 3)
    classes = [module for module in network.modules() if hasattr(module, "bias")][-1].out_channels
    voter = (defer_head(network, torch.randn(1, 1, *patch, device=device), classes) if defer else None) or network
    return predict_back([voter], image, restore, classes=classes, patch=patch, device=device)


def run(program: str, network: Any, image: Any, shape: Sequence[int], patch: Sequence[int], device: str) -> Any:
    if program == "MONAI":
        return by_monai(network, image, shape, patch, device)
    return by_medkd(network, image, shape, patch, device, defer=program == "medkd")


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Run one program here, once on a small image to load what it needs, then on the whole."""
    import psutil
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, classes, shape, patch = given.network, given.classes, tuple(given.shape), (given.patch,) * 3
    network = build(name, classes).to(given.device)
    # The warm-up is of few classes: its peak must not hide that of the run.
    dot = torch.rand(1, 20, 16, 16)
    run(given.program, build("pointwise", 2).to(given.device), dot, (40, 32, 20), (16, 16, 16), given.device)
    image = torch.from_numpy(np.load(given.folder / f"{'x'.join(map(str, shape))}.npy"))
    on_cpu = given.device == "cpu"
    if on_cpu:
        room = psutil.Process().memory_info().vms + int(FREE_SHARE * psutil.virtual_memory().available)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    else:
        torch.cuda.reset_peak_memory_stats()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    try:
        if given.program == "MONAI":  # told now, not after minutes of windows
            torch.empty((classes, *shape), device=given.device)
        label = run(given.program, network, image, shape, patch, given.device)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return {"fits": False, "seconds": time.perf_counter() - start}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024  # kilobytes on Linux
    np.save(given.folder / f"{given.program}.npy", label)
    peak = peak if on_cpu else torch.cuda.max_memory_allocated()
    weights = sum(part.numel() for part in network.parameters())
    return {"fits": True, "seconds": seconds, "cpu": cpu, "peak_mb": peak / 1e6, "weights": weights}


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def child(folder: str, program: str, shape: Sequence[int], *more: object) -> str:
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, __file__, "--program", program, "--folder", folder, "--shape", *map(str, shape)]
    done = subprocess.run(
        [*command, *map(str, more)], env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def compare(
    folder: str, network: str, classes: int, shape: Sequence[int], patch: int, device: str
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for program in PROGRAMS:
        print(f"{network}, {classes} classes, {device}, {program} ...", file=sys.stderr)
        options = ["--network", network, "--classes", classes, "--patch", patch, "--device", device]
        found[program] = json.loads(child(folder, program, shape, *options).splitlines()[-1])
    if found["MONAI"]["fits"]:
        theirs = np.load(Path(folder) / "MONAI.npy", mmap_mode="r")
        for program in PROGRAMS[1:]:
            ours = np.load(Path(folder) / f"{program}.npy", mmap_mode="r")
            found[program]["agree"] = float(np.mean([(a == b).mean() for a, b in zip(ours, theirs, strict=True)]))
    return found


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    head = ("seconds", "CPU s", "peak MB", "time ratio", "CPU ratio", "memory ratio", "agree")
    print(f"{'':16}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in head))
    peer = found["MONAI"]
    for program, one in found.items():
        if not one["fits"]:
            print(f"{program:16} did not fit")
            continue
        line = f"{program:16}{one['seconds']:9.1f}{one['cpu']:9.1f}{one['peak_mb']:9.0f}"
        if program != "MONAI" and peer["fits"]:
            ratios = [peer[key] / one[key] for key in ("seconds", "cpu", "peak_mb")]
            line += f"{ratios[0]:12.2f}{ratios[1]:11.2f}{ratios[2]:14.2f}{one['agree']:9.5f}"
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="512 x 512 x 300 voxels, 14 and 118 classes, windows of 96")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 80))
    parser.add_argument("--classes", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS)
    parser.add_argument("--json", type=Path, help="also write all numbers")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.program == "phantom":
        np.save(given.folder / f"{'x'.join(map(str, given.shape))}.npy", phantom(prepared_shape(given.shape), 0))
        return 0
    if given.program:
        given.network, given.classes = given.network[0], given.classes[0]
        print(json.dumps(measured(given)))
        return 0
    if given.full:
        given.shape, given.classes, given.patch = (512, 512, 300), [14, 118], 96
    devices = ["cpu"]
    probe = "import torch; print(torch.cuda.is_available())"  # elsewhere: this process must stay small
    if (
        subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip()
        == "True"
    ):
        devices.append("cuda")
    print(f"one thread, {machine()}")
    everything: dict[str, Any] = {}
    low = 1.0
    with tempfile.TemporaryDirectory() as folder:
        shape, half = tuple(given.shape), tuple(side // 2 for side in given.shape)
        for size in (shape, half):
            child(folder, "phantom", size)
        for device in devices:
            for network in given.network:
                for classes in given.classes:
                    for size in (shape, half):
                        found = compare(folder, network, classes, size, given.patch, device)
                        title = f"{network}, {classes} classes, {' x '.join(map(str, size))} voxels, {device}"
                        show(title, found)
                        everything[title] = found
                        low = min([low, *(one["agree"] for one in found.values() if "agree" in one)])
                        if found["MONAI"]["fits"]:
                            break
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1))
    if low < AGREE:
        print(f"only {low:.4%} of the voxels agree, less than {AGREE:.1%}", file=sys.stderr)
    return int(low < AGREE)


if __name__ == "__main__":
    sys.exit(main())
