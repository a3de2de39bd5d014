"""Run the teachers once over every training case and store what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.splits import Split
from medkd.errors import UserError
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest, write_text
from medkd.pipeline.nodes import Node, targets_json, targets_node
from medkd.pipeline.specs import Stage
from medkd.pipeline.steps import room
from medkd.pipeline.steps.fidelity import audited
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.panel import Panel, who_answers
from medkd.pipeline.steps.teachers import admit, open_members, targets_folder, write_members
from medkd.teachers.cache import TargetStore, content_digest
from medkd.teachers.encodings import Encoding
from medkd.teachers.fusion import Fused

CALIBRATION = "calibration.json"
KNOWN = "known.json"
FUSION = "fusion.jsonl"
AUDIT = "audit.json"


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``targets/``, ``teachers.json``, ``calibration.json``, ``known.json``, ``fusion.jsonl`` and ``audit.json``.

    Cases that an interrupted attempt stored whole are kept.

    Raises:
        UserError: a teacher may not teach here, cannot answer, or the disk has no room for the answers.
    """
    ground, name = Ground.of(inputs, context), stage_of(node, context)
    stage, split = context.config.stages[name], ground.split(node.fold)
    panel = assemble(name, inputs, ground, split)
    admit(panel.members, split, ground.dataset, ground.ontology, context.config.allowed(stage.teacher))
    cases = (*split.train, *split.unlabelled)
    encoding = encoding_of(stage, cases, ground, out)
    write_members(panel.members, out)
    (out / KNOWN).write_text(json.dumps({case: known for case in cases if not all(known := panel.known(case))}))
    if not (out / CALIBRATION).is_file():  # an interrupted attempt has used the temperatures that it wrote
        found = panel.calibrate(split)
        told = {source: {**one.to_json(), "applied": stage.targets.calibrate} for source, one in found.items()}
        write_text(out / CALIBRATION, json.dumps(told, indent=1))
    panel = replace(panel, temperatures=temperatures(out))
    about = [ground.facts["data_hash"], {one.name: one.card.identity for one in panel.members}, ground.plan.to_json()]
    store = TargetStore(
        out / "targets", encoding=encoding, content=content_digest(*about, targets_json(context.config, name))
    )

    def report(done: int, of: int) -> None:
        context.progress({"node": node.name, "step": done, "of": of})

    with (out / FUSION).open("a") as file:  # a line a case; an interrupted attempt goes on after its own
        fill(store, cases, panel, report, lambda case, fused: note_fusion(file, case, fused))
    told = audited(panel, stored(out), cases, store.encoding.name)
    write_text(out / AUDIT, json.dumps(told, indent=1))
    context.progress({"node": node.name, "note": "; ".join(_notes(out, told))})


def _notes(out: Path, audit: Mapping[str, Any]) -> Iterator[str]:
    """Yield what calibration and audit found, in a few words each."""
    for source, one in json.loads((out / CALIBRATION).read_text()).items():
        if one["ece_before"] is not None:
            used = "" if one["applied"] else " (not applied)"
            change = f"ECE {one['ece_before']:.3f} to {one['ece_after']:.3f}"
            yield f"{Path(source).name}: temperature {one['value']:.2f}{used}, {change}"
    if "augmented" in audit:
        found = audit["augmented"]["all"]
        yield f"stored against live: KL {found['kl_nats']:.2g} nats, same class {found['agreement']:.2%}"


def fill(
    store: TargetStore,
    cases: Sequence[str],
    panel: Panel,
    progress: Callable[[int, int], None] = lambda done, of: None,
    note: Callable[[str, Fused], None] = lambda case, fused: None,
) -> None:
    """Store what the panel says of those cases that are missing or damaged."""

    def answer(case: str) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        fused = panel.answer(case)
        note(case, fused)
        return fused.probabilities, fused.trust

    store.fill(cases, answer, progress)


def note_fusion(file: IO[str], case: str, fused: Fused) -> None:
    """Write how far the teachers agreed about a case."""
    trust = np.ones(0) if fused.trust is None else fused.trust[0][fused.probabilities.argmax(0) > 0]
    mean = float(trust.mean()) if trust.size else 1.0
    line = {"case": case, "claimed": fused.claimed, "conflicts": fused.conflicts, "foreground_trust": mean}
    file.write(json.dumps(line) + "\n")
    file.flush()


def fusion_line(folder: Path) -> str | None:
    """Return a sentence on how far teachers of different classes agreed, or None where they never contradicted."""
    file = folder / FUSION
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    told = {line["case"]: line for line in lines}.values()
    conflicts, claimed = (sum(line[key] for line in told) for key in ("conflicts", "claimed"))
    if not conflicts:
        return None
    trust = sum(line["foreground_trust"] * line["claimed"] for line in told) / claimed
    return (
        f"Teachers of different classes claim the same voxel in {conflicts / claimed:.2%} of the voxels that one "
        f"claims; there the surer one is believed and trusted less. Mean trust in the foreground is {trust:.1%}"
    )


def encoding_of(stage: Stage, cases: Sequence[str], ground: Ground, out: Path) -> Encoding | None:
    """Return how the answers are stored; None for as an interrupted attempt has begun."""
    if (out / "targets" / "index.json").is_file():
        return None
    shapes = [ground.store.index[case]["shape"][1:] for case in cases]
    return room.choose(stage.targets, shapes, len(ground.ontology.labels), room.free_bytes(out))[0]


def temperatures(folder: Path) -> dict[str, float]:
    """Return the temperature that is applied to each teacher's answers; empty where none is."""
    file = folder / CALIBRATION
    told: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}  # none in those of earlier versions
    return {source: float(one["value"]) for source, one in told.items() if one["applied"]}


def stage_of(node: Node, context: Context) -> str:
    """Return a stage that reads the targets of ``node``; all of them want the same."""
    taught = (name for name, stage in context.config.stages.items() if stage.teacher)
    return next(name for name in taught if targets_node(context.config, name, node.fold) == node)


def assemble(stage: str, inputs: Mapping[str, Path], ground: Ground, split: Split) -> Panel:
    """Open the teachers of a stage and settle who answers about which training case.

    Raises:
        UserError: a teacher cannot be read; out of fold, a case that everybody saw.
    """
    context = ground.context
    wanted = context.config.stages[stage]
    members = open_members(
        wanted.teacher,
        inputs,
        device=context.device,
        mirror=wanted.targets.mirror,
        trust_pickle=wanted.trust_pickle,
    )
    cases, who = (*split.train, *split.unlabelled), None
    if context.config.out_of_fold(stage):
        who = who_answers(members, cases, ground.dataset, ground.ontology)
    return Panel(members, ground, who, wanted.targets.trust)


class Stored:
    """Stored targets as a training reads them, and which classes each case's teachers know.

    Args:
        store: the answers.
        known: case -> ``(K,)`` of the classes that are told from background, where these are not all.
    """

    def __init__(self, store: TargetStore, known: Mapping[str, Sequence[bool]]) -> None:
        self.store, self._known = store, known

    def read(self, case: str) -> Any:
        """Return the probabilities ``(K, *S)``, sliceable."""
        return self.store.read(case)

    def trust(self, case: str) -> Any:
        """Return the trust in them ``(1, *S)``, sliceable, or None for one everywhere."""
        return self.store.trust(case)

    def positions(self, case: str) -> dict[int, Any]:
        """Return voxel positions by foreground class that the teachers see."""
        return self.store.positions(case)

    def known(self, case: str) -> Sequence[bool] | None:
        """Return which classes the teachers tell from background, or None for all."""
        return self._known.get(case)


def repair(reader: str, inputs: Mapping[str, Path], cases: Sequence[str], ground: Ground) -> Stored:
    """Return the stored targets of a finished node, whole: what was damaged since is made again.

    Args:
        reader: name of the training that reads them.
        inputs: of that training.
        cases: that it reads.
        ground: its data.

    Raises:
        UserError: answers are damaged and the teachers that gave them are gone.
    """
    folder = targets_folder(inputs)
    store = TargetStore(folder / "targets")
    if damaged := [case for case in cases if not store.verify(case)]:
        manifest = read_manifest(folder)
        assert manifest is not None  # it is the input of a node that runs
        node = Node(**manifest.node)
        before = {name: folder.parent / f"{name}-{key[:12]}" for name, key in manifest.inputs.items()}
        if gone := [name for name, path in before.items() if read_manifest(path) is None]:
            raise UserError(
                f"stored answers about {', '.join(damaged[:3])} in {folder} are damaged, and {gone[0]}, which they "
                "came from, is gone; delete that folder and run the same command again"
            )
        panel = assemble(stage_of(node, ground.context), before, ground, ground.split(node.fold))
        fill(store, damaged, replace(panel, temperatures=temperatures(folder)))
        ground.context.progress({"node": reader, "note": f"{len(damaged)} damaged answers of teachers were made again"})
    return stored(folder, store)


def stored(folder: Path, store: TargetStore | None = None) -> Stored:
    """Return the stored targets in the folder of a ``targets`` node."""
    known = folder / KNOWN
    told = json.loads(known.read_text()) if known.is_file() else {}
    return Stored(store or TargetStore(folder / "targets"), told)
