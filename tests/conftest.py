"""Fixtures that tests of several floors share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

# Tests run beside each other on few cores: one thread each is faster than all of them fighting.
torch.set_num_threads(1)
# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHAPE = (24, 28, 20)
SPACING_MM = (1.5, 1.5, 2.0)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return the folder of a real dataset below $MEDKD_DATA, or skip the test naming the dataset."""

    def find(name: str) -> Path:
        base = os.environ.get("MEDKD_DATA")
        if not base:
            pytest.skip(f"needs {name}: MEDKD_DATA is unset")
        if not (Path(base) / name).is_dir():
            pytest.skip(f"needs {name}, which is not in {base}")
        return Path(base) / name

    return find


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """Write an MSD dataset of CT-like boxes: 6 labelled cases and 2 unlabelled, with a liver and a spleen each."""
    root = tmp_path / "Task99_Tiny"
    labelled = [f"tiny_{index:02d}" for index in range(6)]
    unlabelled = [f"tiny_{index:02d}" for index in range(6, 8)]
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (root / folder).mkdir(parents=True)
    for seed, case in enumerate(labelled + unlabelled):
        image, label = _phantom(seed)
        affine = np.diag([*SPACING_MM, 1.0])
        folder = "imagesTr" if case in labelled else "imagesUn"
        nib.save(nib.Nifti1Image(image, affine), root / folder / f"{case}.nii.gz")
        if case in labelled:
            nib.save(nib.Nifti1Image(label, affine), root / "labelsTr" / f"{case}.nii.gz")
    description = {
        "name": "Tiny",
        "licence": "CC0",
        "reference": "made by a test",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in labelled],
        "unlabelled": [f"./imagesUn/{case}.nii.gz" for case in unlabelled],
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


@pytest.fixture
def write_series() -> Callable[..., Path]:
    """Return a function that writes a CT series of noise in HU: 7 rows, 9 columns, voxels of 1.5 x 1 x 3 mm."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset

    def write(
        folder: Path,
        *,
        shape: tuple[int, int, int] = (9, 7, 5),
        orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
        uid: str = "1.2.3",
        name: str = "Thorax",
        prefix: str = "",
        seed: int = 0,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        columns, rows, slices = shape
        stored = np.random.default_rng(seed).integers(0, 1500, (slices, rows, columns), dtype=np.int16)
        normal = np.cross(orientation[:3], orientation[3:])
        for number in range(slices):
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2", uid, "1.2.5"
            one.PatientID, one.PatientName, one.PatientSex, one.PatientBirthDate = "P1", "Phantom^One", "O", ""
            one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber = "1", "20260102", "101112", ""
            one.Modality, one.SeriesDescription, one.SeriesNumber = "CT", name, 2
            one.ReferringPhysicianName, one.Manufacturer, one.PatientPosition = "", "simulated", "HFS"
            # Numbers say nothing of the place, as on some scanners.
            one.InstanceNumber = 1 + (number * 7) % slices
            one.Rows, one.Columns, one.PixelSpacing, one.SliceThickness = rows, columns, [1.5, 1], 3
            one.ImagePositionPatient = [float(value) for value in np.array([-20, -30, 40]) + 3 * number * normal]
            one.ImageOrientationPatient = list(orientation)
            one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 1
            one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
            one.RescaleSlope, one.RescaleIntercept = 1, -1024
            one.PixelData = stored[number].tobytes()
            one.save_as(folder / f"{prefix}{number}.dcm", enforce_file_format=True)
        return folder

    return write


def _phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in SHAPE], indexing="ij"))
    label = np.zeros(SHAPE, dtype=np.uint8)
    for value, centre, radii in ((1, (8, 13, 10), (5, 7, 6)), (2, (18, 15, 10), (3, 4, 4))):
        shift = rng.integers(-1, 2, 3)
        away = [(grid[i] - centre[i] - shift[i]) / radii[i] for i in range(3)]
        label[sum(x**2 for x in away) <= 1] = value
    image = np.array([-100.0, 110.0, 60.0])[label] + rng.normal(0, 15, SHAPE)
    return image.astype(np.int16), label
