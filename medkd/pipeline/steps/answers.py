"""Ask the teachers about the test cases of a fold, once for every student that is compared with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.preprocess import Restore, restore_label, restore_probabilities
from medkd.data.volume import read_label, read_volume, write_label
from medkd.evaluation.cases import Row, measure_rows, write_rows
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node, answers_node
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.panel import Panel
from medkd.pipeline.steps.teachers import admit, open_members, write_members
from medkd.teachers.cache import TargetStore
from medkd.teachers.encodings import Encoding
from medkd.teachers.fusion import Fused

STORE = "answers"
KNOWN = "known.json"
_CLASS = "class"


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``answers/`` (8-bit probabilities and classes on the prepared grid), ``teachers.json``, ``known.json``.

    Of teachers that no stage of the run evaluates as they teach (from outside, or several stages together) also
    ``predictions/`` and ``cases.csv``, as an ``evaluate`` node does. The folder may be deleted once the run is done.
    """
    ground = Ground.of(inputs, context)
    config, split = context.config, ground.split(node.fold)
    name = next(n for n, s in config.stages.items() if s.teacher and answers_node(config, n, node.fold) == node)
    stage = config.stages[name]
    members = open_members(
        stage.teacher,
        inputs,
        device=context.device,
        mirror=stage.targets.mirror,
        trust_pickle=stage.trust_pickle,
    )
    admit(members, split, ground.dataset, ground.ontology, config.allowed(stage.teacher))
    write_members(members, out)
    panel = Panel(members, ground)
    store = TargetStore(out / STORE, encoding=Encoding("uint8"))
    unmeasured = len(stage.teacher) > 1 or stage.teacher[0] not in config.stages
    rows: list[Row] = []
    known: dict[str, list[bool]] = {}
    for done, case in enumerate(split.test, 1):
        known[case] = [bool(one) for one in panel.known(case)]
        if unmeasured or not (store.has(case) and store.volumes.has(case, _CLASS)):
            fused = panel.answer(case)
            store.write(case, fused.probabilities)
            # In 8 bits two classes may be equal that were not.
            store.volumes.write(case, _CLASS, fused.probabilities.argmax(0)[None].astype(np.int16))
            if unmeasured:
                rows += _measure(node, case, fused, ground, out)
        context.progress({"node": node.name, "step": done, "of": len(split.test)})
    (out / KNOWN).write_text(json.dumps({case: one for case, one in known.items() if not all(one)}))
    if unmeasured:
        write_rows(out / "cases.csv", rows)


def _measure(node: Node, name: str, fused: Fused, ground: Ground, out: Path) -> list[Row]:
    """Measure an answer on the case's original grid, by the classes that it knows, and keep its label map."""
    case, config = ground.dataset.case(name), ground.context.config
    probabilities = fused.probabilities
    assert case.label is not None  # the test part has labelled cases only
    volume = read_volume(case.images)
    shape = tuple(int(side) for side in probabilities.shape[1:])
    x, y, z = (int(side) for side in volume.array.shape[1:])
    restore = Restore(volume.geometry, volume.affine, (x, y, z), (shape[0], shape[1], shape[2]), ground.plan.spacing_mm)
    answer = (
        restore_label(probabilities.argmax(0), restore)
        if restore.shape == restore.canonical_shape
        else restore_probabilities(probabilities, restore)
    )
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    write_label(folder / f"{name}.nii.gz", answer, volume.geometry)
    return measure_rows(
        answer,
        read_label(case.label, like=volume),
        volume.spacing_mm,
        {label: value for label, value in ground.dataset.labels.items() if fused.known[value]},
        config.evaluate.metrics,
        convention=config.evaluate.surfaces,
        lesions=config.evaluate.lesions,
        case=name,
        patient=case.patient,
        arm=node.stage,
        stage=node.stage,
        fold=node.fold or 0,
    )


class Answers:
    """What the teachers said of the test cases, as an ``evaluate`` node reads it.

    Args:
        folder: the finished ``answers`` node.
    """

    def __init__(self, folder: Path) -> None:
        self.store = TargetStore(folder / STORE)
        self._known: dict[str, list[bool]] = json.loads((folder / KNOWN).read_text())

    @classmethod
    def among(cls, inputs: Mapping[str, Path]) -> Answers | None:
        """Return the answers among a node's inputs, or None where there are none."""
        folder = next((path for name, path in inputs.items() if name.startswith("answers.")), None)
        return None if folder is None else cls(folder)

    def read(self, case: str) -> Any:
        """Return the teachers' probabilities ``(K, *S)``, sliceable."""
        return self.store.read(case)

    def classes(self, case: str) -> NDArray[np.int16]:
        """Return the classes that the teachers chose, ``(*S)``."""
        return np.asarray(self.store.volumes.read(case, _CLASS)[0])

    def known(self, case: str) -> NDArray[np.bool_] | None:
        """Return which of the K classes the teachers know, or None for all."""
        return np.array(self._known[case]) if case in self._known else None
