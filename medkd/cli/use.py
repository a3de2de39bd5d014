"""Verbs for what a run has made: ``predict``, ``export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli.terminal import AsJson, Device, fail, note, say, say_json
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.inference.predict import PredictedCase

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run, or a trained or exported model.", show_default=False)
]


def predict(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A volume or a folder.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder, or a file for one.", show_default=False)],
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 1,
    overlap: Annotated[float, typer.Option(min=0, max=0.9, help="Share of a window that the next covers.")] = 0.5,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over the flips that training used.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is there.")] = False,
    as_json: AsJson = False,
) -> int:
    """Label a volume, or a folder of volumes.

    Labels lie on the grid of each input. One that cannot be read does not stop the others; the exit code is then 2.
    """
    from medkd.cli.watch import advance, counted
    from medkd.inference.model import SegmentationModel
    from medkd.inference.predict import predict_files
    from medkd.pipeline.folder import disk_errors, find_model

    loaded = SegmentationModel.from_folder(
        find_model(model), device=device, batch=batch, overlap=overlap, mirror=mirror
    )
    with counted("predict") as bar, disk_errors(output):
        cases = predict_files(
            loaded, source, output, overwrite=overwrite, progress=lambda done, of, _: advance(bar, done, of)
        )
    if as_json:
        say_json([_case(case) for case in cases])
    else:
        for case in cases:
            if case.status != "failed":
                was = "" if case.status == "done" else " (was there; --overwrite predicts it again)"
                say(f"{case.output}{was}")
    failed = [case for case in cases if case.status == "failed"]
    for case in failed:
        note(f"medkd: {case.case}: {case.error}")
    return fail(f"{len(failed)} of {len(cases)} cases failed; the others are done") if failed else 0


def _case(case: PredictedCase) -> dict[str, object]:
    return {**asdict(case), "inputs": [str(path) for path in case.inputs], "output": str(case.output)}


def export(
    model: Model,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to write [MODEL/export for a run].")] = None,
    to: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT", help="onnx (the default) or bundle; may be repeated.")
    ] = None,
) -> int:
    """Write a network as ONNX or MONAI bundle."""
    from medkd.errors import nearest
    from medkd.pipeline.folder import disk_errors, find_model

    formats = to or ["onnx"]
    for name in formats:
        if name not in ("onnx", "bundle"):
            raise UserError(f"--to {name}: no such format{nearest(name, ('onnx', 'bundle'))}; give onnx or bundle")
    if not model.is_dir():
        raise UserError(f"{model} is no folder; give a run's, runs/<name>, or a trained model's")
    found = find_model(model)
    if out is None and found == model:
        raise UserError(f"{model} is no run's folder, so say where to: medkd export {model} OUT")
    base = out or model / "export"
    for name in formats:
        folder = base / name if len(formats) > 1 or out is None else base
        with disk_errors(folder):
            if name == "onnx":
                from medkd.export.onnx import export_onnx

                export_onnx(found, folder)
            else:
                from medkd.export.bundle import export_bundle

                export_bundle(found, folder)
        say(f"{name}: {folder}")
    return 0
