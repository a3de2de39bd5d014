"""Files in, files out: one label file for every case, reading and writing beside the network."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from numpy.typing import NDArray

from medkd.data.formats import stem, suffix
from medkd.data.volume import Geometry, read_volume, write_label
from medkd.errors import UserError
from medkd.inference.api import check_channels
from medkd.inference.cases import FORMATS, Job, find_cases, names_file, plan_jobs
from medkd.inference.dicomseg import need_highdicom, write_segmentation
from medkd.inference.model import Ready, SegmentationModel
from medkd.inference.record import RECORD, SIDECAR, Maker, PredictedCase, Record

__all__ = ["FORMATS", "RECORD", "SIDECAR", "PredictedCase", "Progress", "find_cases", "predict_files"]

Progress = Callable[[int, int, PredictedCase], None]
"""Called after every case with how many are finished, how many there are, and the case."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_FEW_BYTES = 64_000


@dataclass
class _Work:
    """A case on its way: what is read of it, or why it failed."""

    job: Job
    geometry: Geometry | None = None
    ready: Ready | None = None
    error: str | None = None
    short_of_memory: bool = False
    disk_full: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def result(self) -> PredictedCase:
        job = self.job
        return PredictedCase(
            job.case, job.files, job.target, "failed" if self.error else "done", self.error, self.seconds
        )


def predict_files(
    model: SegmentationModel,
    input: Path | Sequence[Path],  # noqa: A002 - the command line's word
    output: Path,
    *,
    overwrite: bool = False,
    format: str | None = None,  # noqa: A002 - likewise
    progress: Progress | None = None,
) -> list[PredictedCase]:
    """Segment files, DICOM series, and all of them in folders.

    Labels lie on the grid of their image, under its name and in its format (``.mhd`` becomes ``.mha``, ``.nhdr``
    becomes ``.nrrd``: one file each; a DICOM series becomes NIfTI). Channels are one file each, ``case_0000.nii.gz``,
    ``case_0001.nii.gz``, or one file with all of them. Beside the labels lie ``labels.json`` (classes, model, options),
    ``labels.txt`` for ITK-SNAP, ``labels.ctbl`` for 3D Slicer, and ``predictions.jsonl``, a line for every case.

    While the network works on one case, the next is read and prepared and the one before is written; there are never
    more than these three in memory. A case that cannot be read or does not fit the model is reported and the others are
    done. A second call skips what the same model with the same options has made of the same images.

    Args:
        model: loaded once, used for all.
        input: a volume, a DICOM series (folder, ``folder#UID``, or multi-frame file), a folder of these, or several.
        output: a folder; for one case also a file name (``.dcm``: DICOM SEG).
        overwrite: predict again what is there already.
        format: ``nii.gz``, ``nii``, ``nrrd``, ``mha`` or ``seg`` (DICOM SEG); None for the format of the image.
        progress: told after every case.

    Returns:
        One entry per case, in the order of the inputs, sorted by name within a folder.

    Raises:
        UserError: nothing to predict, output in place of the input, or labels of another model or options in
            ``output``.
    """
    sources = [input] if isinstance(input, Path) else list(input)
    jobs = plan_jobs(sources, output, channels=model.card.in_channels, format=format)
    if any(_is_seg(job.target) for job in jobs):
        need_highdicom()
    to_file = names_file(output)
    prefix = f"{stem(output) if suffix(output) else output.stem}." if to_file else ""
    maker = Maker(model.labels, model.identity, model.options)
    record = Record(output.parent if to_file else output, prefix, maker, overwrite=overwrite)

    results: list[PredictedCase] = []

    def tell(one: PredictedCase) -> None:
        results.append(one)
        if progress is not None:
            progress(len(results), len(jobs), one)

    todo = []
    for job in jobs:
        early = _before(job, record, overwrite)
        if early is None:
            todo.append(job)
        else:
            tell(early)
    for one in _run(model, todo, record):
        if not one.disk_full:
            record.add(one.result())
        tell(one.result())
    place = {(job.case, job.files): index for index, job in enumerate(jobs)}
    return sorted(results, key=lambda one: place[one.case, one.inputs])


def _before(job: Job, record: Record, overwrite: bool) -> PredictedCase | None:
    """Return what is known of a case before it is read: it is done, or cannot be."""
    try:
        if job.error:
            raise UserError(job.error)
        if not overwrite and record.is_done(job.case, job.files, job.target):
            return PredictedCase(job.case, job.files, job.target, "skipped")
    except UserError as error:
        return PredictedCase(job.case, job.files, job.target, "failed", str(error))
    return None


def _run(model: SegmentationModel, jobs: Sequence[Job], record: Record) -> Iterator[_Work]:
    """Yield every case when it is written or has failed, in order."""
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
        ahead: Future[_Work] | None = None
        behind: Future[_Work] | None = None
        for index, job in enumerate(jobs):
            work = ahead.result() if ahead is not None else _load(model, job)
            if work.short_of_memory and ahead is not None:  # it shared the memory with the case before
                work = _load(model, job)
            following = jobs[index + 1] if index + 1 < len(jobs) else None
            ahead = reader.submit(_load, model, following) if following is not None else None
            label = _label(model, work)
            if work.short_of_memory and label is None and work.ready is not None and ahead is not None:
                ahead.result()  # its memory may be all that was missing; it is read again later
                ahead, work.error = None, None
                label = _label(model, work)
            work.ready = None
            if behind is not None:
                yield (done := behind.result())
                behind = None
                if done.disk_full:
                    yield from _give_up(jobs[index:])
                    return
            if label is None:
                yield work
            else:
                behind = writer.submit(_write, model, work, label, record)
        if behind is not None:
            yield behind.result()


def _load(model: SegmentationModel, job: Job) -> _Work:
    """Read and prepare a case."""
    work = _Work(job)
    try:
        files, channels = job.files, model.card.in_channels
        if len(files) not in (1, channels):
            raise UserError(f"case {job.case} has {len(files)} files but the model reads {channels} channels")
        if len(files) > 1 and any(not stem(path).endswith(f"_{i:04d}") for i, path in enumerate(files)):
            raise UserError(f"case {job.case} lacks a channel: its files must end in _0000 to _{len(files) - 1:04d}")
        began = perf_counter()
        volume = read_volume(files)
        work.seconds["load"] = perf_counter() - began
        check_channels(volume, model.card, f"image {files[0]}")
        work.ready = model.prepare(volume)
        work.geometry = volume.geometry
    except UserError as error:
        work.error = str(error)
    except MemoryError:
        _short(work)
    return work


def _label(model: SegmentationModel, work: _Work) -> NDArray[Any] | None:
    """Return the label of a case that was read, or None."""
    if work.error is not None or work.ready is None:
        return None
    try:
        label = model.label_ready(work.ready)
    except UserError as error:
        work.error = str(error)
        return None
    except (MemoryError, torch.OutOfMemoryError):
        _short(work)
        return None
    work.seconds |= work.ready.seconds
    return label


def _short(work: _Work) -> None:
    work.short_of_memory = True
    work.error = f"case {work.job.case} does not fit in memory; use a GPU or machine with more, or a smaller batch"


def _write(model: SegmentationModel, work: _Work, label: NDArray[Any], record: Record) -> _Work:
    began = perf_counter()
    job = work.job
    assert work.geometry is not None
    try:
        record.begin(job.target)
        if _is_seg(job.target):
            series, labels = job.files[0], model.labels
            write_segmentation(job.target, label, work.geometry, series=series, labels=labels, model=model.identity)
        else:
            write_label(job.target, label, work.geometry)
        work.seconds["write"] = perf_counter() - began
    except UserError as error:
        work.error = str(error)
        work.disk_full = _disk_full(error, job.target.parent)
    except MemoryError:
        _short(work)
    return work


def _is_seg(target: Path) -> bool:
    return target.suffix.lower() == ".dcm"


def _disk_full(error: UserError, folder: Path) -> bool:
    """Tell whether nothing more can be written; SimpleITK tells no reason, so the disk itself is asked too."""
    if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
        return error.__cause__.errno in _NO_SPACE
    return folder.is_dir() and shutil.disk_usage(folder).free < _FEW_BYTES


def _give_up(jobs: Sequence[Job]) -> Iterator[_Work]:
    """Yield the cases that a full disk leaves undone: without a place for the label no hour of network is spent."""
    for job in jobs:
        yield _Work(
            job,
            error=f"case {job.case} was not tried: the disk is full; free some and give the command again",
            disk_full=True,
        )
