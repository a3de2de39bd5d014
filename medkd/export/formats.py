"""Every format a student can leave in, behind one function."""

from __future__ import annotations

from pathlib import Path

from medkd.errors import UserError, nearest
from medkd.export.evidence import Evidence
from medkd.export.portable import Exported
from medkd.export.variants import GATE

FORMATS = ("onnx", "bundle", "torchscript", "pt2", "openvino")


def export_as(
    form: str, model_folder: Path, out_folder: Path, *, evidence: Evidence | None = None, gate: float = GATE
) -> Exported:
    """Write a trained network in one format.

    Args:
        form: one of :data:`FORMATS`.
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: an older export there is replaced.
        evidence: real cases to calibrate and compare on.
        gate: largest mean loss of Dice with which a smaller variant is kept.

    Raises:
        UserError: no such format, a missing extra, or a network that does not answer as the trained one does.
    """
    if form == "onnx":
        from medkd.export.portable import export_portable

        return export_portable(model_folder, out_folder, evidence=evidence, gate=gate)
    if form == "bundle":
        from medkd.export.bundle import export_bundle

        return Exported(form, export_bundle(model_folder, out_folder))
    if form == "openvino":
        from medkd.export.openvino import export_openvino

        return export_openvino(model_folder, out_folder, evidence=evidence, gate=gate)
    if form in ("pt2", "torchscript"):
        from medkd.export.torchfiles import export_torch

        return export_torch(model_folder, out_folder, form, evidence=evidence, gate=gate)
    raise UserError(f"no format {form!r}{nearest(form, FORMATS)}; give one of {', '.join(FORMATS)}")
