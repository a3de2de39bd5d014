"""OpenVINO: the network as IR, and an int8 variant that NNCF calibrates on real patches."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.errors import UserError
from medkd.export.evidence import Array, Evidence
from medkd.export.onnx import export_onnx
from medkd.export.portable import Built, Exported, make_variants, seal, staged
from medkd.export.variants import GATE
from medkd.inference.onnx import CARD, GRAPH


def export_openvino(
    model_folder: Path, out_folder: Path, *, evidence: Evidence | None = None, gate: float = GATE
) -> Exported:
    """Write ``student.xml`` and ``student.bin``, and ``student.int8.*`` where it passes; ``medkd-run`` reads it.

    Args:
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: an older export there is replaced.
        evidence: real cases; None leaves the certificate and int8 out.
        gate: largest mean loss of Dice with which int8 is kept.

    Raises:
        UserError: a missing extra, or a network that does not answer as the trained one does.
    """
    openvino = _module("openvino")
    core: Any = openvino.Core()
    with staged(out_folder) as part, tempfile.TemporaryDirectory() as rest:
        export_onnx(model_folder, Path(rest))
        body = json.loads((Path(rest) / CARD).read_text())
        body.pop("onnx")
        model: Any = core.read_model(str(Path(rest) / GRAPH))
        openvino.save_model(model, str(part / "student.xml"), compress_to_fp16=False)
        makers: dict[str, Callable[[str], str]] = {}
        if evidence is not None:
            patches = evidence.patches
            makers["int8"] = lambda file: _int8(core.read_model(str(part / "student.xml")), part / file, patches)
        built, refused = make_variants(makers, "student.{}.xml", ("student.{}.bin",))
        whole = {"fp32": Built("student.xml", ("student.xml", "student.bin"), "as trained"), **built}
        return replace(seal(part, "openvino", model_folder, body, whole, refused, evidence, gate), folder=out_folder)


def _int8(model: Any, out: Path, patches: Sequence[Array]) -> str:
    with _silent():
        nncf = _module("nncf")
        openvino = _module("openvino")
        data = nncf.Dataset([patch[None] for patch in patches])
        try:
            small: Any = nncf.quantize(model, data, subset_size=len(patches))
            openvino.save_model(small, str(out), compress_to_fp16=False)
        except Exception as error:  # NNCF raises whatever its passes raise
            out.unlink(missing_ok=True)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"NNCF cannot quantise the network ({reason}); use fp32") from error
    return f"NNCF, calibrated on {len(patches)} training patches"


def _module(name: str) -> Any:
    # NNCF tells its makers of every use, unless this is set; what a hospital exports is nobody's business.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(f"OpenVINO export needs {name}; install it with `pip install 'medkd[openvino]'`") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Hide progress bars and notes: the comparison on real cases is the judge."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
