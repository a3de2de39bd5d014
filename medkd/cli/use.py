"""Verbs for what a run has made: ``predict``, ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli.terminal import AsJson, Device, fail, note, say, say_json
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.export.evidence import Evidence

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run, or a trained or exported model.", show_default=False)
]


def predict(
    model: Model,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Volumes, DICOM series, or folders of them.", show_default=False),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder, or a file for one.", show_default=False)],
    device: Device = "auto",
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(metavar="FORMAT", help="nii.gz, nii, nrrd, mha, or seg for DICOM SEG [that of the input]."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows at a time [what the device suits].")] = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.9, help="Share of a window that the next covers.")] = 0.5,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over the flips that training used.")] = False,
    skip_air: Annotated[bool, typer.Option("--skip-air", help="Leave out windows that show air alone.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network [all].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is there.")] = False,
    as_json: AsJson = False,
) -> int:
    """Label volumes, DICOM series, or folders of them.

    Labels lie on the grid of each input. One that cannot be read does not stop the others; the exit code is then 2.
    The same command given again goes on where it was stopped.
    """
    from time import perf_counter

    from medkd.cli.watch import advance, counted
    from medkd.inference.model import SegmentationModel
    from medkd.inference.predict import predict_files
    from medkd.pipeline.folder import disk_errors, find_model

    began = perf_counter()
    loaded = SegmentationModel.from_folder(
        find_model(model),
        threads=threads,
        device=device,
        batch=batch,
        overlap=overlap,
        mirror=mirror,
        skip_air=skip_air,
    )
    with counted("predict") as bar, disk_errors(output):
        cases = predict_files(
            loaded,
            sources,
            output,
            overwrite=overwrite,
            format=format,
            progress=lambda done, of, _: advance(bar, done, of),
        )
    if as_json:
        maker = {"model": loaded.identity, "labels": loaded.labels, "options": loaded.options}
        here = {"device": str(loaded.device), "threads": threads, "seconds": round(perf_counter() - began, 3)}
        say_json({**maker, **here, "cases": [case.to_json() for case in cases]})
    else:
        for case in cases:
            if case.status != "failed":
                was = "" if case.status == "done" else " (was there; --overwrite predicts it again)"
                say(f"{case.output}{was}")
    failed = [case for case in cases if case.status == "failed"]
    for case in failed:
        note(f"medkd: {case.case}: {case.error}")
    return fail(f"{len(failed)} of {len(cases)} cases failed; the others are done") if failed else 0


def export(
    model: Model,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to write [MODEL/export for a run].")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT", help="onnx (the default), bundle, torchscript, pt2, openvino; several by commas."
        ),
    ] = None,
    gate: Annotated[
        float, typer.Option(min=0, max=1, help="Mean loss of Dice up to which int8 and float16 are kept.")
    ] = 0.005,
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Real cases to compare on [the test cases of the run].")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
) -> int:
    """Write a network for ONNX, MONAI, OpenVINO or torch.

    With the proof, on real cases, that it answers the same. Of onnx and openvino, smaller variants (int8, float16)
    are made too, calibrated on training patches, and kept only where they lose less Dice than --gate.
    """
    from medkd.errors import nearest
    from medkd.export.formats import FORMATS, export_as
    from medkd.export.variants import tell
    from medkd.pipeline.folder import disk_errors, find_model

    formats = list(dict.fromkeys(name.strip() for part in to or ["onnx"] for name in part.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--to {name}: no such format{nearest(name, FORMATS)}; give one of {', '.join(FORMATS)}")
    if not model.is_dir():
        raise UserError(f"{model} is no folder; give a run's, runs/<name>, or a trained model's")
    found = find_model(model)
    if out is None and found == model:
        raise UserError(f"{model} is no run's folder, so say where to: medkd export {model} OUT")
    base = out or model / "export"
    evidence = _evidence(found, data, cases) if formats != ["bundle"] else None
    for name in formats:
        folder = base / name if len(formats) > 1 or out is None else base
        with disk_errors(folder):
            done = export_as(name, found, folder, evidence=evidence, gate=gate)
        say(f"{name}: {folder}")
        if done.parity is not None:
            say(f"  {len(done.parity.cases)} real cases: {done.parity.told}")
        elif name != "bundle":
            say("  compared on noise alone: no real cases; --data DATASET gives some")
        for one in done.verdicts:
            said = (
                f"kept, {tell(one.loss)} of Dice lost against {one.against}" if one.kept else f"refused: {one.reason}"
            )
            say(f"  {one.variant}: {said}")
    return 0


def _evidence(model: Path, data: str | None, cases: int) -> Evidence | None:
    from medkd.networks.weights import read_card
    from medkd.pipeline.steps.export import evidence_of_run

    if data is None:
        return evidence_of_run(model, cases=cases)
    from medkd.data.dataset import load_dataset
    from medkd.export.evidence import evidence_of_dataset

    return evidence_of_dataset(load_dataset(data), read_card(model), cases=cases)
