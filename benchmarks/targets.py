"""What stored targets cost and what they lose: bytes, KL to the live teacher, patches a second, steps a second.

    python benchmarks/targets.py                                  # 118 classes: a map made here
    python benchmarks/targets.py --run runs/hippocampus --run runs/headneck
    python benchmarks/targets.py --run runs/hippocampus --only steps

A run is the folder of a finished one with teachers: its prepared volumes, its trained teachers and its student are
used. Times are CPU seconds of one thread, and every ratio is of neighbours in time, so that a busy machine changes
them little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from numpy.typing import NDArray
from target_steps import steps
from target_subjects import Run, encodings, name_of, phantom, table

from medkd.data.store import read_patch
from medkd.teachers.cache import TargetStore

Array = NDArray[Any]
BORDER = 0.9
"""A voxel whose likeliest class has less than this lies at a border."""


def kl(p: Array, q: Array, temperature: float) -> Array:
    """Return KL(p || q) of each voxel, ``(N,)`` from ``(K, N)``, in nats."""
    p, q = (np.maximum(one, 1e-12) ** (1 / temperature) for one in (p.astype(np.float64), q.astype(np.float64)))
    p, q = p / p.sum(0), q / q.sum(0)
    return np.asarray((p * np.log(p / q)).sum(0))


def losses(p: Array, q: Array) -> list[float]:
    """Return mean KL at temperature 1 (all, foreground, border) and 2 (all, foreground), and how often another wins."""
    p, q = p.reshape(len(p), -1), q.reshape(len(q), -1)
    step = max(1, p.size // 30_000_000)  # of many classes every n-th voxel is enough
    p, q = p[:, ::step], q[:, ::step]
    plain, soft, owner = kl(p, q, 1), kl(p, q, 2), p.argmax(0)
    inside, edge = owner > 0, p.max(0) < BORDER
    return [
        plain.mean(),
        plain[inside].mean(),
        plain[edge].mean(),
        soft.mean(),
        soft[inside].mean(),
        (owner != q.argmax(0)).mean(),
    ]


LOST = ("KL", "foreground", "border", "KL at T=2", "foreground at T=2", "other class wins")


def sizes(answers: Mapping[str, Sequence[Array]]) -> None:
    """Bytes a voxel on disk, all files of a case, and what is lost."""
    rows: list[list[object]] = []
    for name, volumes in answers.items():
        unsure = float(np.mean([(p.max(0) < 0.99).mean() for p in volumes]))
        for encoding in encodings(len(volumes[0])):
            with tempfile.TemporaryDirectory() as folder:
                store = TargetStore(Path(folder), encoding=encoding, ram_mb=0)
                found = []
                for number, p in enumerate(volumes):
                    store.write(str(number), p)
                    found.append(losses(p, store.read(str(number))[...]))
                size, voxels = store.stored_bytes([str(number) for number in range(len(volumes))])
            rows.append(
                [name, f"{100 * unsure:.1f} %", name_of(encoding), size / voxels, *map(float, np.mean(found, 0))]
            )
    table(("answers", "voxels below 0.99", "encoding", "bytes per voxel", *LOST), rows)


def curves(answers: Mapping[str, Sequence[Array]]) -> None:
    """A byte a class: which curve loses least."""
    steps = np.arange(256) / 255
    rows: list[list[object]] = []

    def logistic(low: float) -> tuple[Callable[[Array], Array], Array]:
        span = np.log((1 - low) / low)
        return lambda p: (np.log(np.clip(p, low, 1 - low) / (1 - np.clip(p, low, 1 - low))) / span + 1) / 2, 1 / (
            1 + np.exp(-(2 * steps - 1) * span)
        )

    known: dict[str, tuple[Callable[[Array], Array], Array]] = {
        f"root {n}": (lambda p, n=n: p ** (1 / n), steps**n) for n in (1, 2, 3, 4)
    }
    for low in (1e-4, 1e-6):
        known[f"log from {low:g}"] = (
            lambda p, low=low: 1 - np.log(np.maximum(p, low)) / np.log(low),
            low ** (1 - steps),
        )
        known[f"logit from {low:g}"] = logistic(low)
    for name, volumes in answers.items():
        for curve, (forth, back) in known.items():
            back = np.concatenate([[max(back[0], 0.03 * back[1])], back[1:]])
            found = []
            for p in volumes:
                code = np.rint(255 * forth(p.astype(np.float64))).astype(np.uint8)
                q = back[code]
                blocks = (1, *(min(s, 32) for s in p.shape[1:]))
                small = blosc2.asarray(code, chunks=(min(len(p), 8), *(min(s, 64) for s in p.shape[1:])), blocks=blocks)
                found.append([small.schunk.cbytes / p[0].size, *losses(p, q / q.sum(0))])
            rows.append([name, curve, *map(float, np.mean(found, 0))])
    table(("answers", "curve", "bytes per voxel", *LOST), rows)


def reads(answers: Mapping[str, Sequence[Array]], patch: int = 48, draws: int = 60) -> None:
    """Random patches, decoded to float32: from disk (through the system's cache), from memory, and from a memmap."""
    rows: list[list[object]] = []
    for name, volumes in answers.items():
        p = volumes[0]
        size = [min(patch, s) for s in p.shape[1:]]
        megabytes = 4e-6 * len(p) * np.prod(size)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "map.npy"), p.astype(np.float16))
            sources: dict[str, Any] = {"float16 memmap": np.load(Path(folder, "map.npy"), mmap_mode="r")}
            for encoding in encodings(len(p)):
                TargetStore(Path(folder, name_of(encoding)), encoding=encoding).write("a", p)
                for where, ram in (("disk", 0.0), ("memory", 1e5)):
                    sources[f"{name_of(encoding)}, {where}"] = TargetStore(
                        Path(folder, name_of(encoding)), ram_mb=ram
                    ).read("a")
            seconds: dict[str, list[float]] = {source: [] for source in sources}
            rng = np.random.default_rng(0)
            for _ in range(draws):
                start = [int(rng.integers(0, s - n + 1)) for s, n in zip(p.shape[1:], size, strict=True)]
                for source, array in sources.items():
                    began = time.process_time()
                    read_patch(array, start, size, 0).astype(np.float32)
                    seconds[source].append(time.process_time() - began)
        for source, spent in seconds.items():
            rate = 1 / float(np.mean(spent))
            rows.append([name, source, rate, rate * float(megabytes), rate * float(np.mean(seconds["float16 memmap"]))])
    table(("answers", "source", "patches/s", "MB/s of float32", "of the memmap's rate"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", default=[], help="folder of a finished run with teachers")
    parser.add_argument("--only", choices=("sizes", "curves", "reads", "steps"), action="append")
    parser.add_argument("--cases", type=int, default=4, help="of each run")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each arm")
    parser.add_argument("--method", action="append", help="what reads the targets; kd and boundary")
    parser.add_argument("--augment", default="default")
    parser.add_argument("--no-phantom", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    wanted = given.only or ("sizes", "curves", "reads", "steps")
    runs = [Run(folder) for folder in given.run]
    if {"sizes", "curves", "reads"} & set(wanted):
        answers = {f"{run.name}, {run.classes}": [run.answer(case) for case in run.cases(given.cases)] for run in runs}
        if "curves" in wanted and answers:
            curves(answers)
        if not given.no_phantom:
            answers["phantom, 118"] = [phantom(118)]
            answers["blurred phantom, 118"] = [phantom(118, sharp=0.5)]
        for what, show in (("sizes", sizes), ("reads", reads)):
            if what in wanted:
                show(answers)
        answers.clear()
    if "steps" in wanted:
        for run in [*runs, *([] if given.no_phantom else [None])]:
            with tempfile.TemporaryDirectory() as folder:
                steps(run, given.method or ("kd", "boundary"), given.cases, given.rounds, given.augment, Path(folder))


if __name__ == "__main__":
    main()
