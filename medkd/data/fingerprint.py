"""What a dataset is made of, and what is wrong with it, found in one pass over its files."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkd.data.dataset import Case, Dataset, is_ct
from medkd.data.dicom import series_files, split_uid
from medkd.data.facts import CaseFacts, Fingerprint, Intensity, Problem
from medkd.data.volume import Volume, read_label, read_volume
from medkd.errors import UserError

__all__ = ["CaseFacts", "Fingerprint", "Intensity", "Problem", "data_hash", "fingerprint", "inspect_case"]

SAMPLES = 10_000
"""Foreground voxels drawn per case for the intensity statistics of the dataset, as nnU-Net does."""

TINY = 8
"""An axis with fewer voxels than this gives a network next to no context."""

ODD_SPACING_MM = (0.05, 20.0)
"""Voxel sizes outside this range are more often a lost header than a scan of a person."""

_IGNORE = -1  # medkd.types.IGNORE, without loading torch into every process

Samples = NDArray[np.float32]
_hashes: dict[tuple[str, int, int], str] = {}


def inspect_case(case: Case, dataset: Dataset) -> CaseFacts:
    """Read one case and tell what it holds and what is wrong with it; a damaged case is told, never raised."""
    return _inspect(case, dataset)[0]


def fingerprint(dataset: Dataset, progress: Callable[[int, int], None] | None = None, jobs: int = 1) -> Fingerprint:
    """Inspect every case.

    Args:
        dataset: what to inspect; one volume per job is in memory at a time.
        progress: called with (cases done, cases) after each case.
        jobs: processes to share the work.

    Problems are collected, not raised: see :meth:`Fingerprint.raise_if_broken`.

    Raises:
        UserError: a file vanished meanwhile, or a process died.
    """
    facts: dict[str, CaseFacts] = {}
    drawn: dict[str, Samples] = {}
    for done, (found, samples) in enumerate(_each(dataset, jobs), start=1):
        facts[found.id] = found
        drawn[found.id] = samples
        if progress:
            progress(done, len(dataset.cases))
    cases = {case.id: facts[case.id] for case in dataset.cases}  # as listed, whichever process was first
    usable = [f for f in cases.values() if f.readable and f.labelled] or [f for f in cases.values() if f.readable]
    pooled = [drawn[f.id] for f in usable if len(f.intensity) == len(dataset.channels) and drawn[f.id].size]
    shape = _median([f.shape for f in usable])
    spacing = _median([f.spacing_mm for f in usable])
    return Fingerprint(
        name=dataset.name,
        labels=dict(dataset.labels),
        channels=dataset.channels,
        cases=cases,
        median_shape=(round(shape[0]), round(shape[1]), round(shape[2])),
        median_spacing_mm=(spacing[0], spacing[1], spacing[2]),
        intensity=tuple(_intensity(channel) for channel in np.concatenate(pooled, axis=1)) if pooled else (),
        dataset_problems=_dataset_problems(dataset, cases),
        data_hash=data_hash(dataset),
    )


def data_hash(dataset: Dataset) -> str:
    """Hash all that training reads from a dataset: every byte of its files, labels, channels and patients.

    Files are read once a process; after that a file counts as unchanged while its size and time stamp are.

    Raises:
        UserError: a file is gone or may not be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((sorted(dataset.labels.items(), key=lambda pair: pair[1]), dataset.channels)).encode())
    for case in sorted(dataset.cases, key=lambda case: case.id):
        files = [_content(path) for path in (*case.images, *((case.label,) if case.label else ()))]
        digest.update(repr((case.id, case.patient, case.label is not None, files)).encode())
    return digest.hexdigest()


def _content(path: Path) -> str | list[str]:
    """Return the hash of a file, or the hashes of a DICOM series' folder and which series is meant."""
    files = series_files(path)
    return _file_hash(path) if files == [path] else [split_uid(path)[1], *map(_file_hash, files)]


def _file_hash(path: Path) -> str:
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        if key not in _hashes:
            digest = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            _hashes[key] = digest.hexdigest()
    except OSError as error:
        raise UserError(f"file {path} cannot be read: {error.strerror}") from error
    return _hashes[key]


def _each(dataset: Dataset, jobs: int) -> Iterator[tuple[CaseFacts, Samples]]:
    inspect = partial(_inspect, dataset=dataset)
    if jobs <= 1 or len(dataset.cases) < 2:
        yield from map(inspect, dataset.cases)
        return
    # Spawned, not forked: a forked copy of a process with threads may hang on a lock that no thread will release.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(dataset.cases)), mp_context=context) as pool:
        futures = [pool.submit(inspect, case) for case in dataset.cases]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:  # memory ran out, or a damaged file took its reader down
            raise UserError(f"a process that read dataset {dataset.name} died; try again with one job") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _inspect(case: Case, dataset: Dataset) -> tuple[CaseFacts, Samples]:
    """Return the facts of a case and ``(C, n)`` foreground samples, n at most :data:`SAMPLES`."""
    samples = np.zeros((len(dataset.channels), 0), dtype=np.float32)
    labelled = case.label is not None
    try:
        volume = read_volume(case.images)
    except UserError as error:
        return CaseFacts(case.id, labelled, problems=(Problem("broken", str(error), case.id),)), samples
    problems = _image_problems(case, volume, dataset)
    inside = volume.array.reshape(len(volume.array), -1)
    counts: dict[str, int] = {}
    try:
        label = read_label(case.label, like=volume) if case.label else None
    except UserError as error:
        label = None
        problems.append(Problem("broken", str(error), case.id))
    if label is not None:
        counts, undeclared = _count(label, dataset.labels)
        if undeclared:
            told = ", ".join(f"{value} ({number} voxels)" for value, number in undeclared.items())
            text = f"label {case.label} holds values that the dataset does not declare: {told}"
            problems.append(Problem("broken", text, case.id))
        foreground = (label > 0).ravel()
        if foreground.any():
            inside = inside[:, foreground]
            draw = np.random.default_rng(0).integers(0, inside.shape[1], min(SAMPLES, inside.shape[1]))
            samples = inside if inside.shape[1] <= SAMPLES else inside[:, draw]
        else:
            text = f"label {case.label} is empty: nothing but background"
            problems.append(Problem("suspicious", text, case.id))
    millilitres = float(np.prod(volume.spacing_mm)) / 1000
    facts = CaseFacts(
        id=case.id,
        labelled=labelled,
        readable=True,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        intensity=tuple(_intensity(channel) for channel in inside),
        voxels=counts,
        ml={name: count * millilitres for name, count in counts.items()},
        problems=tuple(problems),
        image_hash=hashlib.blake2b(volume.array.data, digest_size=16).hexdigest(),
    )
    return facts, samples


def _image_problems(case: Case, volume: Volume, dataset: Dataset) -> list[Problem]:
    found = []
    image = case.images[0]
    if len(volume.array) != len(dataset.channels):
        names = ", ".join(dataset.channels)
        text = f"image {image}: the channels should be {names}, but it has {len(volume.array)}"
        found.append(Problem("broken", text, case.id))
    return found + [Problem("suspicious", text, case.id) for text in _oddities(image, volume, dataset)]


def _oddities(image: Path, volume: Volume, dataset: Dataset) -> Iterator[str]:
    low, high = ODD_SPACING_MM
    if min(volume.spacing_mm) < low or max(volume.spacing_mm) > high:
        spacing = ", ".join(f"{side:g}" for side in volume.spacing_mm)
        yield f"image {image} has voxels of ({spacing}) mm, which is odd for a scan of a person"
    if min(volume.shape) < TINY:
        yield f"image {image} is tiny: shape {volume.shape}"
    for name, channel in zip(dataset.channels, volume.array, strict=False):
        least, most = float(channel.min()), float(channel.max())
        if least == most:
            yield f"image {image}: channel {name} is {least:g} everywhere"
        elif is_ct(name) and least >= 0:
            yield f"image {image}: channel {name} has no value below 0; a CT should be in Hounsfield units"


def _count(label: NDArray[np.int16], labels: dict[str, int]) -> tuple[dict[str, int], dict[int, int]]:
    """Count the voxels of each declared class, and of each value that is neither declared nor IGNORE."""
    values, numbers = np.unique(label, return_counts=True)
    found = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
    declared = {name: found.pop(value, 0) for name, value in labels.items()}
    found.pop(_IGNORE, None)
    return declared, found


def _intensity(values: NDArray[np.float32]) -> Intensity:
    p00_5, median, p99_5 = (float(p) for p in np.percentile(values, (0.5, 50, 99.5)))
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Intensity(mean, std, median, p00_5, p99_5, float(values.min()), float(values.max()))


def _median(triples: Sequence[tuple[float, float, float]]) -> list[float]:
    return [float(np.median(axis)) for axis in zip(*triples, strict=True)] if triples else [0.0, 0.0, 0.0]


def _dataset_problems(dataset: Dataset, cases: dict[str, CaseFacts]) -> tuple[Problem, ...]:
    problems = []
    counted = [facts for facts in cases.values() if facts.voxels]
    for name in dataset.labels if counted else ():
        if not any(facts.voxels[name] for facts in counted):
            problems.append(Problem("broken", f"class {name!r} is in none of the {len(counted)} labelled cases"))
    first: dict[str, str] = {}
    for case, facts in cases.items():
        twin = first.setdefault(facts.image_hash, case) if facts.image_hash else case
        if twin != case:
            apart = dataset.case(twin).patient != dataset.case(case).patient
            why = ", yet they count as two patients, so one could be trained on and the other tested" if apart else ""
            problems.append(Problem("suspicious", f"cases {twin} and {case} hold the same image{why}", case))
    return tuple(problems)
