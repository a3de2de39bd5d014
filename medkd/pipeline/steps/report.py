"""Gather what all nodes found and write the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medkd.evaluation.cases import write_rows
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps import evidence
from medkd.pipeline.steps.gather import Gathered
from medkd.report.card import model_card
from medkd.report.page import write_report
from medkd.report.summary import DataFacts, RunSummary
from medkd.report.tables import arms_json, report_files


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``report.html``, ``summary.json``, ``arms.json``, ``cases.csv``, and the tables beside the page."""
    gathered = Gathered(inputs, context)
    run = summary(gathered)
    (out / "summary.json").write_text(json.dumps(run.to_json()))
    (out / "arms.json").write_text(json.dumps(arms_json(run), indent=1))
    for name, text in report_files(run).items():
        (out / name).write_text(text, encoding="utf-8")
    (out / "model_card.md").write_text(model_card(run), encoding="utf-8")
    write_rows(out / "cases.csv", gathered.rows)  # also of arms that the report does not show
    write_report(run, out / "report.html")


def summary(gathered: Gathered) -> RunSummary:
    """Return the whole run as the report wants it."""
    config, dataset = gathered.context.config, gathered.ground.dataset
    split = gathered.ground.split(config.data.run_folds[0])
    sizes = {name: len(cases) for name, cases in vars(split).items()}
    shown = gathered.shown
    agreed, outcomes = evidence.fidelity(gathered)
    looked_at = list(evidence.looked_at(gathered))
    return RunSummary(
        name=config.report.title or config.name,
        arms=tuple(arm for arm in gathered.arms() if arm.name in shown),
        rows=tuple(row.to_record() for row in gathered.rows if row.arm in shown),
        comparisons=tuple(gathered.comparisons()),
        curves=tuple(gathered.curves()),
        slices=tuple(plane for plane, _ in looked_at),
        data=DataFacts(dataset.name, dataset.licence or "", dataset.reference or "", dict(dataset.labels), sizes),
        plan_notes=gathered.ground.plan.notes,
        config=config.to_yaml(),
        cost_note=str(gathered.cost["note"]),
        provenance=gathered.provenance(),
        parity=tuple(gathered.parity()),
        case_costs=tuple(gathered.case_costs()),
        warnings=tuple(gathered.warnings()),
        study=gathered.study(),
        fidelity=agreed,
        outcomes=outcomes,
        reliability=tuple(evidence.calibration(gathered)),
        lost=tuple(evidence.lost(gathered)),
        volumes=tuple(view for _, view in looked_at if view is not None),
    )


__all__ = ["execute", "summary"]
