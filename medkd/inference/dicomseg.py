"""Label maps as DICOM segmentation objects, one segment a class, tied to the series they were made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd import __version__
from medkd.data.colours import label_colours
from medkd.data.dicom import open_series
from medkd.data.volume import Geometry, to_stored
from medkd.errors import UserError
from medkd.inference.segcodes import Meaning, meaning

SERIES_NUMBER = 900
"""Far above what scanners count to, so that the object stands last in a viewer's list."""


def need_highdicom() -> None:
    """Raise a UserError where highdicom is not installed: before a network runs for hours, not after."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UserError("DICOM SEG needs highdicom; install it with `pip install 'medkd[dicom]'`") from error


def write_segmentation(
    path: Path,
    label: NDArray[Any],
    geometry: Geometry,
    *,
    series: Path,
    labels: Mapping[str, int],
    model: str,
) -> None:
    """Write a label map as a DICOM SEG (binary, one segment a class); the file appears whole or not at all.

    Args:
        path: target, ``.dcm``.
        label: ``(X, Y, Z)`` whole numbers, canonical.
        geometry: the grid of the series.
        series: the series that was labelled, as :func:`medkd.data.dicom.open_series` takes it.
        labels: class name -> value.
        model: what stands for the weights.

    Raises:
        UserError: highdicom is missing, the series lacks what a SEG must repeat, or the disk refuses.
        ValueError: ``label`` has another shape than the canonical grid.
    """
    need_highdicom()
    import highdicom

    source = open_series(series)
    planes = np.ascontiguousarray(to_stored(label, geometry).astype(np.uint8 if label.max() < 256 else np.uint16).T)
    if source.frames[0].header.get("NumberOfFrames"):  # a multi-frame file keeps its own order
        numbers = [frame.number for frame in source.frames]
        planes = planes[np.argsort(numbers)]
    values = sorted(value for value in labels.values() if value > 0)
    segments = [
        _segment(highdicom, number, name, label_colours(labels)[name], model)
        for number, name in enumerate(sorted((n for n in labels if labels[n] > 0), key=labels.__getitem__), 1)
    ]
    if values != list(range(1, len(values) + 1)):
        planes = np.searchsorted([0, *values], planes).astype(planes.dtype)
    try:
        whole = highdicom.seg.Segmentation(
            source_images=source.headers,
            pixel_array=planes,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medkd",
            manufacturer_model_name="medkd predict",
            software_versions=__version__,
            device_serial_number=model[:16] or "unknown",
            content_label="SEGMENTATION",
            content_description="Labels of a neural network, not reviewed",
            series_description="medkd labels",
        )
    except (AttributeError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"no DICOM SEG can be made from series {series}: {error}; write NIfTI instead") from error
    _save(whole, path)


def _segment(highdicom: Any, number: int, name: str, colour: tuple[int, int, int], model: str) -> Any:
    from pydicom.sr.codedict import codes

    means: Meaning = meaning(name)
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=means.category,
        segmented_property_type=means.type,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"medkd {model[:16]}".strip(), version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
        anatomic_regions=[means.region] if means.region is not None else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*colour),
    )
    if means.side is not None:
        # highdicom has no argument for the side; the standard keeps it as a modifier of the type.
        side = highdicom.sr.CodedConcept.from_code(means.side)
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return segment


def _save(dataset: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
