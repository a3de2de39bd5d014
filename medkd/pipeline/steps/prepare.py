"""Inspect the dataset, decide the plan, and store every case on the plan's grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medkd.data.fingerprint import fingerprint
from medkd.data.plan import make_plan
from medkd.data.preprocess import prepare_image, prepare_label
from medkd.data.splits import make_folds
from medkd.data.store import Store
from medkd.data.volume import read_label, read_volume
from medkd.errors import UserError
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground, read_dataset
from medkd.teachers.labels import Ontology


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``fingerprint.json``, ``plan.json``, ``splits.json``, ``facts.json`` and the store.

    Raises:
        UserError: a case is broken; names up to three of them.
    """
    config = context.config
    dataset = read_dataset(context)
    total = 2 * len(dataset.cases)

    def report(done: int, _of: int) -> None:
        context.progress({"node": node.name, "step": done, "of": total})

    facts = fingerprint(dataset, report)
    broken = [problem for problem in facts.problems if problem.severity == "broken"]
    if broken:
        more = f" (and {len(broken) - 3} more)" if len(broken) > 3 else ""
        told = "; ".join(problem.text for problem in broken[:3])
        raise UserError(f"the dataset {dataset.root} is broken: {told}{more}; see `medkd data inspect {dataset.root}`")
    union = Ontology.of(dataset.labels, config.data.ontology).labels
    plan = make_plan(facts, replace(dataset, labels=dict(union)), config.plan or None)
    folds = make_folds(dataset, folds=config.data.folds, seed=config.data.seed, validation=config.data.validation)
    store = Store(out)
    for done, case in enumerate(dataset.cases, len(dataset.cases)):
        context.progress({"node": node.name, "step": done, "of": total})
        volume = read_volume(case.images)
        image, restore = prepare_image(volume, plan)
        label = None
        if case.label is not None:
            label = prepare_label(read_label(case.label, like=volume), volume, plan, restore.shape)
        store.add(case.id, image, label)
    store.close()
    for name, body in {
        "fingerprint.json": facts.to_json(),
        "plan.json": plan.to_json(),
        "splits.json": [vars(fold) for fold in folds],
        "facts.json": {"data_hash": facts.data_hash, "suspicious": [p.text for p in facts.problems]},
    }.items():
        (out / name).write_text(json.dumps(body, indent=1))
    for fold in config.data.run_folds:
        Ground(out, context).check_classes(fold)
