"""What a bare model file cannot say of itself, stated beside it: labels, spacing, window, intensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.data.plan import Plan
from medkd.data.plan_values import parse
from medkd.errors import UserError, nearest

FORMAT = 1
ENDINGS = (".yaml", ".yml", ".json")
OUTPUTS = ("logits", "probabilities")
_NEEDED = ("labels", "spacing_mm", "patch", "intensity")
_FREE = (
    "format",
    "name",
    "channels",
    "output",
    "mirror_axes",
    "mirror_swap",
    "trained_on",
    "patients",
    "licence",
    "provenance",
)


@dataclass(frozen=True)
class Sidecar:
    """A description of a model in a few lines.

    Args:
        path: the file.
        labels: class name -> output channel.
        plan: spacing, window, intensities, flips.
        output: ``"logits"`` or ``"probabilities"``.
        name: for people; empty for the file's.
        trained_on: case ids; None where not stated.
        patients: of these cases.
        licence: of the weights.
        provenance: anything else worth keeping.
    """

    path: Path
    labels: dict[str, int]
    plan: Plan
    output: str = "logits"
    name: str = ""
    trained_on: tuple[str, ...] | None = None
    patients: tuple[str, ...] = ()
    licence: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def sidecar_of(model: Path) -> Sidecar:
    """Read the description beside a model file: ``net.yaml`` or ``net.json`` beside ``net.onnx``.

    Raises:
        UserError: there is none, it lacks a key or has an unknown one, or a value is not what it should be.
    """
    path = next((file for ending in ENDINGS if (file := model.with_suffix(ending)).is_file()), None)
    if path is None:
        raise UserError(
            f"{model} says nothing of its labels and intensities; write {model.with_suffix('.yaml').name} beside it "
            f"with {', '.join(_NEEDED)}"
        )
    body = read_description(path)
    check_keys(body, _NEEDED, _FREE, path)
    rules = body["intensity"]
    channels = body.get("channels")
    count = len(channels) if isinstance(channels, list) else channels
    if count is None:
        count = len(rules) if isinstance(rules, list) else 1
    try:
        plan = Plan(
            spacing_mm=parse("spacing_mm", body["spacing_mm"], None),
            patch=parse("patch", body["patch"], None),
            batch=1,
            intensity=parse("intensity", rules, int(count)),
            strides=((1, 1, 1),),
            kernels=((3, 3, 3),),
            mirror_axes=parse("mirror_axes", body.get("mirror_axes", []), None),
            mirror_swap=parse("mirror_swap", body.get("mirror_swap", []), None),
        )
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('plan.', '')}") from error
    output = str(body.get("output", "logits"))
    if output not in OUTPUTS:
        raise UserError(f"{path}: output is {output!r}{nearest(output, OUTPUTS)}; say logits or probabilities")
    return Sidecar(path, labels_of(body["labels"], path), plan, output, **credentials(body, path))


def credentials(body: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a description says of a model's origin, as fields of :class:`Sidecar` and of a teacher's card."""
    return {
        "name": str(body.get("name", "")),
        "trained_on": _names(body["trained_on"], "trained_on", path) if "trained_on" in body else None,
        "patients": _names(body.get("patients", []), "patients", path),
        "licence": str(body["licence"]) if body.get("licence") else None,
        "provenance": {"sidecar": path.name, **dict(body.get("provenance", {}))},
    }


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds one mapping.

    Raises:
        UserError: it cannot be read, holds something else, or was written for a newer medkd.
    """
    from monai.bundle import ConfigParser  # reads both, and builds nothing from a YAML file

    try:
        body = ConfigParser.load_config_file(str(path))
    except Exception as error:  # YAML's errors share no base with JSON's, and only the pipeline knows YAML by name
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as {path.suffix[1:].upper()}: {reason}") from error
    if not isinstance(body, dict):
        raise UserError(f"{path} must hold keys and values, such as `labels: ...`")
    version = body.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(f"{path} has format {version}, this medkd reads up to {FORMAT}; upgrade medkd")
    return body


def check_keys(body: Mapping[str, Any], needed: tuple[str, ...], free: tuple[str, ...], path: Path) -> None:
    """Raise a UserError for a key that is missing or unknown."""
    if missing := [key for key in needed if key not in body]:
        raise UserError(f"{path} does not say {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
    for key in body:
        if key not in needed and key not in free:
            raise UserError(
                f"{path} has no key {key!r}{nearest(str(key), needed + free)}; use {', '.join(needed + free)}"
            )


def labels_of(value: Any, path: Path) -> dict[str, int]:
    """Return class name -> channel, from a mapping (either way round) or from names in order; background is 0.

    Raises:
        UserError: the values are not 0, 1, 2 and so on.
    """
    if isinstance(value, list):
        value = {str(name): index for index, name in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{path}: labels must name the classes, as {{background: 0, liver: 1}}")
    if all(str(key).isdigit() for key in value):
        value = {str(name): int(key) for key, name in value.items()}
    if any(isinstance(number, list | tuple) for number in value.values()):
        raise UserError(f"{path}: labels are regions that overlap, and a teacher must give one class per voxel")
    try:
        labels = {str(name): int(number) for name, number in value.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: labels must map names to whole numbers, as {{background: 0, liver: 1}}") from error
    if sorted(labels.values()) != list(range(len(labels))) or len(labels) < 2:
        raise UserError(
            f"{path}: label values are {sorted(labels.values())}; they must be 0 (background), 1, 2 and so on"
        )
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _names(value: Any, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} must be a list of names, as [case_01, case_02]; leave it out if not known")
    return tuple(str(name) for name in value)
