"""medkd's own models as teachers: a trained stage, or all members of a stage of a finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medkd.data.plan import Plan
from medkd.errors import UserError, nearest
from medkd.networks.weights import ModelCard, file_hash, load_network
from medkd.teachers.adapters.planned import PlannedTeacher, digest, plan_digest
from medkd.teachers.sources import Kind, Teacher, TeacherCard


def open_model(
    folder: Path, *, name: str | None = None, device: str | torch.device = "cpu", mirror: bool = False
) -> Teacher:
    """Open a model folder: ``model.safetensors`` and ``model.json``.

    Raises:
        UserError: incomplete, damaged, or of a newer medkd.
    """
    network, model = load_network(folder)
    card = card_of(model, name or folder.name, "medkd", file_hash(folder / "model.safetensors"))
    return PlannedTeacher(card, Plan.from_json(model.plan), network, device=device, mirror=mirror)


def card_of(model: ModelCard, name: str, kind: Kind, weights: str) -> TeacherCard:
    """Return the teacher's card of a model of medkd, whose weights have the hash ``weights``."""
    plan = Plan.from_json(model.plan)
    return TeacherCard(
        name=name,
        kind=kind,
        labels=dict(model.labels),
        in_channels=model.in_channels,
        trained_on=model.trained_on or None,
        patients=model.patients,
        licence=_licence(model.provenance),
        identity=digest(weights, plan_digest(plan), model.labels),
        provenance=model.provenance,
    )


def open_run(
    path: Path,
    *,
    device: str | torch.device = "cpu",
    mirror: bool = False,
    folds: Sequence[int | str] | None = None,
) -> list[Teacher]:
    """Open the members of a stage of a finished run.

    Args:
        path: ``RUN`` for the stage that was exported, or else the last one that was taught; ``RUN/STAGE`` for another.
        device: where the networks run.
        mirror: average over flips.
        folds: of several folds, take these.

    Raises:
        UserError: no such stage, nothing of it is finished, or a fold is missing.
    """
    run, wanted = (path, None) if path.is_dir() else (path.parent, path.name)
    manifests = _manifests(run)
    trained = [entry for entry in manifests if entry["node"]["kind"] == "train" and entry["node"].get("arm") == "main"]
    if not trained:
        raise UserError(f"run {run} has no finished training yet; let it finish, then use it as a teacher")
    stages = sorted({str(entry["node"]["stage"]) for entry in trained})
    stage = wanted or _last(manifests, trained)
    if stage not in stages:
        raise UserError(f"run {run} has no stage {stage!r}{nearest(stage, stages)}; it has {', '.join(stages)}")
    members = [entry for entry in trained if entry["node"]["stage"] == stage]
    # Networks that each left a part of the cases out are an ensemble of their own, of another day's configuration.
    members = [entry for entry in members if entry["node"].get("part") is None] or members
    if folds is not None:
        asked, found = {str(fold) for fold in folds}, {str(entry["node"]["fold"]) for entry in members}
        if asked - found:
            raise UserError(
                f"run {run} has no fold {', '.join(sorted(asked - found))} of {stage}, only {sorted(found)}"
            )
        members = [entry for entry in members if str(entry["node"]["fold"]) in asked]
    label = f"{run.name}/{stage}"
    return [
        open_model(entry["folder"], name=f"{label}.{_number(entry['node'])}", device=device, mirror=mirror)
        for entry in sorted(members, key=lambda entry: _number(entry["node"]))
    ]


def _manifests(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in sorted((run / "nodes").glob("*/manifest.json")):
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            found.append({**body, "folder": file.parent, "node": dict(body["node"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a node that is being written, or one of a broken run: it is not finished
    return found


def _last(manifests: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]]) -> str:
    """Return the stage that was exported; else the last that was taught; else the last."""
    exported = [entry for entry in manifests if entry["node"]["kind"] == "export"]
    taught = [entry for entry in trained if any(name.startswith("targets.") for name in entry.get("inputs", ()))]
    entries = exported or taught or list(trained)
    return str(max(entries, key=lambda entry: str(entry.get("timings", {}).get("finished", "")))["node"]["stage"])


def _number(node: dict[str, Any]) -> str:
    part = "" if node.get("part") is None else f"p{node['part']}."
    return f"m{node['member']}.{part}f{node['fold']}.s{node['seed']}"


def _licence(provenance: dict[str, Any]) -> str | None:
    found: list[str] = []
    for key, value in provenance.items():
        if "licen" in key.lower() and value:
            found += [f"{name}: {text}" for name, text in value.items()] if isinstance(value, dict) else [str(value)]
    return "; ".join(found) or None
