"""Smaller variants of an ONNX graph: int8 calibrated on real patches, and float16."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError

Array = NDArray[np.float32]


def int8_onnx(graph: Path, out: Path, patches: Sequence[Array]) -> str:
    """Quantise the convolutions of a graph to int8 weights and activations, the rest stays float32.

    Ranges of activations are the extremes over ``patches``; weights have one scale a channel. Where that fails, the
    weights alone are stored in int8 and the ranges of activations are found at every call.

    Args:
        graph: the float32 graph, with an input ``image``.
        out: file to write.
        patches: ``(C, *patch)`` each.

    Returns:
        How it was done, in a few words.

    Raises:
        UserError: neither way works for this graph.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.rest = iter(patches)

        def get_next(self) -> dict[str, Array] | None:
            patch = next(self.rest, None)
            return None if patch is None else {"image": patch[None]}

    ready = out.with_name(f".{out.name}.ready")
    reasons = []
    try:
        for static in (True, False):
            try:
                with _quiet():
                    # Shapes are concrete already, and its symbolic guesses fail on free axes.
                    quant_pre_process(str(graph), str(ready), skip_symbolic_shape=True)
                    kinds = {"per_channel": static, "op_types_to_quantize": ["Conv"], "weight_type": QuantType.QInt8}
                    if static:
                        kinds |= {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
                        quantize_static(str(ready), str(out), Reader(), **kinds)
                    else:
                        quantize_dynamic(str(ready), str(out), **kinds)
            except Exception as error:  # noqa: BLE001 - the quantiser raises whatever its passes raise
                out.unlink(missing_ok=True)
                reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
                continue
            ways = (f"static, calibrated on {len(patches)} training patches", "dynamic")
            return ways[0] if static else ways[1]
    finally:
        ready.unlink(missing_ok=True)
    raise UserError(f"the graph cannot be quantised to int8 ({reasons[0]}); use fp32")


def half_onnx(graph: Path, out: Path) -> str:
    """Store a graph in float16, input and output stay float32.

    Normalisation stays in float32 where it squares activations, which float16 may not hold.

    Args:
        graph: the float32 graph.
        out: file to write.

    Returns:
        How it was done, in a few words.

    Raises:
        UserError: the graph cannot be converted.
    """
    import onnx
    from onnxruntime.transformers import float16

    keep = [*float16.DEFAULT_OP_BLOCK_LIST, "InstanceNormalization", "LayerNormalization", "GroupNormalization"]
    try:
        with _quiet():
            model: Any = float16.convert_float_to_float16(onnx.load(graph), keep_io_types=True, op_block_list=keep)
            onnx.save(model, out)
    except Exception as error:  # the converter raises whatever its passes raise
        out.unlink(missing_ok=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the graph cannot be stored in float16 ({reason}); use fp32") from error
    return "float16, normalisation in float32"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the quantiser says about itself: the comparison on real cases is the judge of its work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
