"""Runtimes for an exported network: onnxruntime and OpenVINO, arrays in and arrays out, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import UserError, nearest
from medkd.export.blend import Array, Session

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Names on the command line and what they ask of onnxruntime; what the first cannot run goes to the next."""


def open_session(path: Path, *, provider: str = "cpu", threads: int | None = None) -> Session:
    """Open a network: ``.onnx`` with onnxruntime, ``.xml`` with OpenVINO.

    Args:
        path: the file.
        provider: a key of :data:`PROVIDERS`; OpenVINO runs on the CPU.
        threads: CPU threads; None leaves the choice to the runtime.

    Raises:
        UserError: the runtime is missing, lacks the provider, or cannot read the file.
    """
    if path.suffix == ".xml":
        return _openvino(path, threads)
    return _onnxruntime(path, provider, threads)


def _onnxruntime(path: Path, provider: str, threads: int | None) -> Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} needs onnxruntime to run; install it with `pip install onnxruntime`") from error
    if provider not in PROVIDERS:
        raise UserError(f"no provider {provider!r}{nearest(provider, PROVIDERS)}; give one of {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[provider]
    there = onnxruntime.get_available_providers()
    if wanted[0] not in there:
        raise UserError(
            f"this onnxruntime has no {wanted[0]} (it has {', '.join(there)}); install onnxruntime-gpu, or give cpu"
        )
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about graph optimisations, nothing a user can act on
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider == "tensorrt":
        import importlib.util

        if importlib.util.find_spec("tensorrt_libs") or importlib.util.find_spec("tensorrt"):
            __import__("tensorrt")  # loads the libraries that the provider looks for
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=list(wanted))
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise UserError(f"{path} cannot be run by onnxruntime ({error}); export the model again") from error
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(image: Array) -> Array:
        (logits,) = session.run([target], {source: np.ascontiguousarray(image)})
        return np.asarray(logits, np.float32)

    return run


def _openvino(path: Path, threads: int | None) -> Session:
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{path} needs OpenVINO to run; install it with `pip install openvino`") from error
    # Without the hint a CPU may compute in bfloat16, which the export was not compared in.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled: Any = openvino.Core().compile_model(str(path), "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} cannot be run by OpenVINO ({reason}); export the model again") from error
    output = compiled.output(0)

    def run(image: Array) -> Array:
        return np.array(compiled(np.ascontiguousarray(image))[output], np.float32)

    return run
