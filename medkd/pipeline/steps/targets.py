"""Run the teachers once over every training case and store what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import admit, cards_of, live_teachers
from medkd.teachers.cache import TargetStore


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``targets/`` and ``teachers.json``; cases that an interrupted attempt stored are kept."""
    ground = Ground.of(inputs, context)
    folders = live_teachers(context.config.teachers_labelled(node.stage), inputs)
    split = ground.split(node.fold)
    cards = cards_of(folders)
    admit(cards, split, ground.dataset, ground.plan)
    model = SegmentationModel.from_folder(folders, device=context.device)
    store = TargetStore(out / "targets")
    cases = (*split.train, *split.unlabelled)
    for done, case in enumerate(cases, 1):
        if not store.has(case):
            image = np.asarray(ground.store.image(case)[...])
            store.write(case, model.probabilities(image).numpy())
        context.progress({"node": node.name, "step": done, "of": len(cases)})
    (out / "teachers.json").write_text(json.dumps({name: asdict(card) for name, card in cards.items()}, indent=1))
