"""Name -> network: every MONAI network by its class name, a dotted path for one's own."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from medkd.errors import UserError, nearest


def names() -> list[str]:
    """Return the class names of MONAI's segmentation networks that :func:`build` knows how to size."""
    import monai.networks.nets as nets

    return sorted(
        name
        for name, item in vars(nets).items()
        if inspect.isclass(item)
        and issubclass(item, nn.Module)
        and item.__name__ == name  # one spelling of each
        and {"in_channels", "out_channels"} <= set(inspect.signature(item).parameters)
    )


def _find(name: str) -> type[nn.Module]:
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"network {name!r} cannot be imported ({error}); give a MONAI class or module.Class"
            ) from error
    else:
        import monai.networks.nets as nets

        found = getattr(nets, name, None)
        if found is None:
            raise UserError(f"network {name!r} is not a class of monai.networks.nets{nearest(name, names())}")
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"network {name!r} is not a torch module class; name one that is")
    return found


def _levels(name: str, wanted: int, strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    if wanted > len(strides):
        raise UserError(
            f"network {name} asks for {wanted} downsamplings but the patch allows {len(strides)}; "
            "use fewer channels, a larger patch, or give `strides` yourself"
        )
    return [tuple(s) for s in strides[:wanted]]


def complete(
    spec: Mapping[str, Any],
    *,
    in_channels: int,
    classes: int,
    patch: Sequence[int],
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the full constructor arguments of ``spec``: what was written, plus what the plan knows.

    Args:
        spec: ``{"name": class, **arguments}``; written arguments always win.
        in_channels: image channels.
        classes: output channels, background included.
        patch: training patch in voxels; its length is the number of spatial dimensions.
        strides: downsampling per level by axis, from the plan; 2 on every axis when None.
        kernels: convolution kernel per level by axis, from the plan; 3 when None.

    Raises:
        UserError: unknown class or argument, or more levels than the patch allows.
    """
    name = str(spec["name"])
    found = _find(name)
    if "." not in name:
        name = found.__name__  # MONAI has several spellings of one class
    parameters = inspect.signature(found).parameters
    given = {key: value for key, value in spec.items() if key != "name"}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in parameters and not open_ended:
            raise UserError(
                f"network {name} has no argument {key!r}{nearest(key, parameters)}; it takes {sorted(parameters)}"
            )
    dims = len(patch)
    strides = [(2,) * dims] * 8 if strides is None else strides
    known: dict[str, Any] = {
        "spatial_dims": dims,
        "in_channels": in_channels,
        "out_channels": classes,
        "img_size": tuple(patch),
    }
    full = {key: value for key, value in known.items() if key in parameters} | given
    if name == "DynUNet":
        full.setdefault("strides", [(1,) * dims, *strides[: len(given["filters"]) - 1 if "filters" in given else 5]])
        depth = len(full["strides"])
        full.setdefault("kernel_size", [tuple(k) for k in (kernels or [(3,) * dims] * depth)[:depth]])
        full.setdefault("upsample_kernel_size", list(full["strides"][1:]))
        full.setdefault("deep_supervision", depth > 3)
        full.setdefault("deep_supr_num", max(1, min(2, depth - 3)))
    elif "channels" in given and "strides" in parameters and "strides" not in given:
        full["strides"] = _levels(name, len(given["channels"]) - 1, strides)
    missing = [
        p.name
        for p in parameters.values()
        if p.default is inspect.Parameter.empty
        and p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and p.name not in full
    ]
    if missing:
        raise UserError(f"network {name} needs {', '.join(missing)}; add to the model, for example `{missing[0]}: ...`")
    return {"name": name, **full}


def network_arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of a class that are networks, which a spec writes as specs: those in its ``networks``."""
    return tuple(getattr(_find(name), "networks", ()))


def build(
    spec: Mapping[str, Any],
    *,
    in_channels: int,
    classes: int,
    patch: Sequence[int],
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
) -> nn.Module:
    """Return the network that ``spec`` names; arguments and errors as in :func:`complete`.

    In evaluation the network maps ``(B, in_channels, *S)`` to logits ``(B, classes, *S)``. It carries its complete
    spec as ``network.spec``. A class may name arguments that are networks in ``networks``; a spec writes them as specs.
    """
    full = complete(spec, in_channels=in_channels, classes=classes, patch=patch, strides=strides, kernels=kernels)
    name, found = full["name"], _find(full["name"])
    arguments = {key: value for key, value in full.items() if key != "name"}
    for key in network_arguments(name):
        arguments[key] = build(arguments[key], in_channels=in_channels, classes=classes, patch=patch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI and torch announce their own future, not the user's mistake
            network = found(**arguments)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(f"network {name} cannot be built from {full}: {error}") from error
    network.__dict__["spec"] = full
    return network
