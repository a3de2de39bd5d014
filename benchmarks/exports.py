"""Latency, size and Dice of every variant of an exported student.

    medkd export RUN OUT --to onnx,openvino
    python benchmarks/exports.py RUN OUT --cases 3 --json exports.json

Every variant that the export kept labels the same prepared test cases of the run, on one thread. The variants take
turns case by case, so that a busy machine slows all alike, and the ratio to torch is the median over cases and repeats.
Times are those of a case's windows and their blending. Dice is measured on the prepared grid against the label maps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from medkd.export.runner import CARD
from medkd.export.sessions import open_session
from medkd.inference.model import SegmentationModel
from medkd.inference.window import Network, predict_label
from medkd.networks.weights import load_network
from medkd.pipeline.folder import find_model
from medkd.pipeline.steps.export import evidence_of_run


def networks(run: Path, out: Path) -> dict[str, tuple[Network, int]]:
    """Return every variant as a function of windows, with its size in bytes."""
    folder = find_model(run)
    found: dict[str, tuple[Network, int]] = {}
    found["torch fp32"] = (load_network(folder)[0], (folder / "model.safetensors").stat().st_size)
    for form, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        if not (out / form / CARD).is_file():
            continue
        files = json.loads((out / form / CARD).read_text())["files"]
        for variant, facts in files.items():
            found[f"{name} {variant}"] = (tensors(out / form / facts["file"]), facts["bytes"])
    return found


def tensors(path: Path) -> Network:
    session = open_session(path, threads=1)

    def network(image: Tensor) -> Tensor:
        return torch.from_numpy(session(image.contiguous().numpy()))

    return network


def dice(answer: np.ndarray, truth: np.ndarray, value: int) -> float | None:
    total = int((answer == value).sum()) + int((truth == value).sum())
    return 2 * int(((answer == value) & (truth == value)).sum()) / total if total else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = SegmentationModel.from_folder(find_model(given.run))
    evidence = evidence_of_run(find_model(given.run), cases=given.cases)
    assert evidence is not None, f"{given.run} is no run with its prepared data"
    variants = networks(given.run, given.out)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    scores: dict[str, list[float]] = {name: [] for name in variants}
    for case in evidence.cases:
        image, truth = torch.from_numpy(case.image()), case.label() if case.label else None
        for repeat in range(given.repeats):
            spent = {}
            for name, (network, _) in variants.items():
                began = perf_counter()
                answer = predict_label(network, image, classes=model.card.classes, patch=model.plan.patch)
                spent[name] = perf_counter() - began
                if truth is not None and repeat == 0:
                    each = [dice(answer, truth, value) for value in model.labels.values() if value > 0]
                    scores[name].append(statistics.mean(one for one in each if one is not None))
            if repeat:  # the first warms up
                for name, value in spent.items():
                    seconds[name].append(value)
                    ratios[name].append(spent["torch fp32"] / value)
    print(f"{given.run.name}: {evidence.source}, {len(evidence.cases)} cases, one thread\n")
    print("| variant | kB | s a case | times torch's speed | Dice | against torch |")
    print("|---|---:|---:|---:|---:|---:|")
    rows = []
    for name, (_, size) in variants.items():
        mean = statistics.mean(scores[name]) if scores[name] else float("nan")
        first = statistics.mean(scores["torch fp32"]) if scores[name] else float("nan")
        row = {
            "variant": name,
            "bytes": size,
            "seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(ratios[name]),
            "dice": mean,
            "difference": mean - first,
        }
        rows.append(row)
        print(
            f"| {name} | {size / 1000:.0f} | {row['seconds']:.3f} | {row['ratio']:.2f} | {mean:.4f} "
            f"| {round(mean - first, 4) + 0.0:+.4f} |"
        )
    if given.json:
        given.json.write_text(json.dumps({"source": evidence.source, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
