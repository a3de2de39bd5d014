"""How a bundle prepares, predicts and restores, in MONAI's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkd.data.plan import IntensityRule, Plan
from medkd.data.preprocess import ZERO_SHARE
from medkd.networks.weights import ModelCard
from medkd.networks.zoo import network_arguments


def inference_config(card: ModelCard, plan: Plan) -> dict[str, Any]:
    """Return the content of ``configs/inference.json``.

    ``run`` needs MONAI alone; ``evaluate`` does the same through MONAI's evaluator, which needs pytorch-ignite.
    """
    return {
        "imports": ["$import glob", "$import monai", "$import numpy as np", "$import torch", "$import warnings"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": _datalist(card.in_channels),
        "network_def": _definition(card.network),
        "network": "$@network_def.to(@device)",
        "preprocessing": _compose(_preprocessing(plan)),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": _compose(_postprocessing()),
        # Default arguments, because an expression's lambda does not see the names of its surroundings.
        "segment": "$torch.no_grad()(lambda image, inferer=@inferer, network=@network, device=@device: "
        "inferer(image[None].to(device), network)[0])",
        "predictions": {
            "_target_": "Dataset",
            "data": "@dataset",
            "transform": _compose(
                [
                    {"_target_": "CopyItemsd", "keys": "image", "names": "pred"},
                    {"_target_": "Lambdad", "keys": "pred", "func": "@segment"},
                    "@postprocessing",
                ]
            ),
        },
        "handlers": [
            {"_target_": "CheckpointLoader", "load_path": "@checkpoint", "load_dict": {"model": "@network"}},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "load": [
            "$warnings.filterwarnings('ignore', message='align_corners=False is not compatible')",
            "$@network.load_state_dict(torch.load(@checkpoint, map_location=@device, weights_only=True))",
            "$@network.eval()",
        ],
        "run": ["@load", "$sum(1 for _ in @predictions)"],
        "evaluate": ["$@evaluator.run()"],
    }


def _definition(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's spec as MONAI writes it; networks among the arguments likewise."""
    name = str(spec["name"])
    inner = network_arguments(name)
    arguments = {key: _definition(value) if key in inner else value for key, value in spec.items() if key != "name"}
    return {"_target_": name if "." in name else f"monai.networks.nets.{name}", **arguments}


def _compose(transforms: Sequence[Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def _datalist(channels: int) -> str:
    if channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"
    numbers = tuple(f"_{index:04d}." for index in range(channels))
    return (
        f"$[{{'image': [path.replace('_0000.', number) for number in {numbers}]}} "
        "for path in sorted(glob.glob(@dataset_dir + '/*_0000.nii*'))]"
    )


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "CopyItemsd", "keys": "image", "names": "reference"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        _intensity(plan.intensity),
        {
            "_target_": "Spacingd",
            "keys": "image",
            "pixdim": list(plan.spacing_mm),
            "mode": 3,
            "padding_mode": "nearest",
            # As medkd: the outer edges of the volume stay where they are. MONAI warns of the pair, yet with
            # align_corners=True its splines sample beside the points that its own affine names (MONAI 1.6).
            "scale_extent": True,
            "align_corners": False,
        },
        *_clip(plan.intensity),
    ]


def _intensity(rules: Sequence[IntensityRule]) -> dict[str, Any]:
    first = rules[0]
    if len(rules) == 1 and first.kind == "ct":
        low, high = _bounds(first)
        return _range(first.low, first.high, low, high)
    parts = []
    for index, rule in enumerate(rules):
        channel = f"x[{index}:{index + 1}]"
        if rule.kind == "ct":
            parts.append(f"({channel}.clamp({rule.low!r}, {rule.high!r}) - {rule.mean!r}) / {max(rule.std, 1e-8)!r}")
        else:  # where many voxels are exactly zero the image was cut out, and zero stays zero
            nonzero = f"bool(({channel} == 0).float().mean() > {ZERO_SHARE})"
            parts.append(f"monai.transforms.NormalizeIntensity(nonzero={nonzero})({channel})")
    return _channels(parts)


def _clip(rules: Sequence[IntensityRule]) -> list[dict[str, Any]]:
    """Cut the overshoot of the spline where the bounds are known, which is in CT."""
    if all(rule.kind != "ct" for rule in rules):
        return []
    if len(rules) == 1:
        low, high = _bounds(rules[0])
        return [_range(low, high, low, high)]
    parts = []
    for index, rule in enumerate(rules):
        channel = f"x[{index}:{index + 1}]"
        parts.append(f"{channel}.clamp{_bounds(rule)}" if rule.kind == "ct" else channel)
    return [_channels(parts)]


def _bounds(rule: IntensityRule) -> tuple[float, float]:
    scale = max(rule.std, 1e-8)
    return (rule.low - rule.mean) / scale, (rule.high - rule.mean) / scale


def _range(a_min: float, a_max: float, b_min: float, b_max: float) -> dict[str, Any]:
    limits = {"a_min": a_min, "a_max": a_max, "b_min": b_min, "b_max": b_max}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **limits, "clip": True}


def _channels(parts: Sequence[str]) -> dict[str, Any]:
    return {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: torch.cat([{', '.join(parts)}])"}


def _postprocessing() -> list[dict[str, Any]]:
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        # Probabilities go back to the image's own grid, so class borders are finer than those of a resampled label.
        {
            "_target_": "ResampleToMatchd",
            "keys": "pred",
            "key_dst": "reference",
            "mode": "bilinear",
            "padding_mode": "border",
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$np.int16",
            "separate_folder": False,
            "resample": False,
            "print_log": False,
        },
    ]
