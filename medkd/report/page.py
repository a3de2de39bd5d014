"""The report: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from medkd.errors import UserError
from medkd.report import content, figures, trust
from medkd.report.curves import panels
from medkd.report.losses import losses
from medkd.report.notices import notices
from medkd.report.packing import plain
from medkd.report.palette import LABEL, arm_colours
from medkd.report.scores import Scores
from medkd.report.summary import RunSummary
from medkd.report.tables import case_costs_table, cases_csv, study_table
from medkd.report.verdict import verdict
from medkd.report.viewer import viewer


def write_report(run: RunSummary, out: Path) -> Path:
    """Write the report of a run.

    Args:
        run: what to tell.
        out: the file (``*.html``), or a folder that receives ``report.html``.

    Returns:
        The written file; it appears whole or not at all.

    Raises:
        UserError: Jinja2, Plotly or scikit-image are not installed, or ``out`` cannot be written.
    """
    path = out if out.suffix.lower() in (".html", ".htm") else out / "report.html"
    text = render(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp makes a file for its owner alone; a report is shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error
    return path


def render(run: RunSummary) -> str:
    """Return the report as HTML text, Plotly, styles, pictures and ``cases.csv`` inside.

    Raises:
        UserError: Jinja2, Plotly or scikit-image are not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(f"the report needs {error.name}, which is absent: pip install 'medkd[report]'") from error
    scores = Scores(run.rows)
    colours = arm_colours(run.arms)
    drawn, plots = _plots(run, colours, scores)
    inside = viewer(run, colours)
    library = get_plotlyjs() if drawn else ""
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        verdict=verdict(run, scores),
        patients=scores.patients(),
        colours=colours,
        label_colour=LABEL,
        contours=content.slice_legend(run, colours),
        arms=content.arms(run, scores),
        case_costs=case_costs_table(run),
        classes=content.classes(run, scores),
        comparisons=content.comparisons(run),
        study=None if run.study is None else study_table(run.study),
        hidden_classes=len(scores.labels) - len(figures.shown_classes(run, scores)),
        paired=run.arm("student") is not None and run.arm("control") is not None,
        plots=plots,
        slices=[{**pictured, "svg": Markup(pictured["svg"])} for pictured in content.slices(run, scores, colours)],  # noqa: S704 made by slice_svg, which escapes
        losses=losses(run),
        fidelity=trust.fidelity_table(run),
        outcomes=trust.outcomes_table(run),
        calibration=trust.calibration_table(run),
        parity=content.parity(run),
        provenance=content.provenance(run),
        csv=base64.b64encode(cases_csv(run).encode()).decode(),
        style=Markup(_resource("report.css")),  # noqa: S704 a file of this package
        viewer=inside,
        viewer_style=Markup(_resource("viewer.css")),  # noqa: S704 a file of this package
        viewer_setup=Markup(_script_json(inside["setup"])) if inside else "",  # noqa: S704 no "<" is left in it
        viewer_script=Markup(_resource("viewer.js")),  # noqa: S704 a file of this package
        niivue_script=Markup(_resource("niivue.js")),  # noqa: S704 a file of this package
        notices=notices(plotly=library, niivue=bool(inside and inside["niivue"])),
        plotly=Markup(library),  # noqa: S704 a library that is meant for a <script>
        figures=Markup(_script_json(drawn)),  # noqa: S704 no "<" is left in it
    )


def _plots(run: RunSummary, colours: Mapping[str, str], scores: Scores) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return element id -> figure, and what the template asks: which figures there are, with titles and heights."""
    found: dict[str, Any] = {
        "per_class": figures.per_class(run, colours, scores),
        "frontier": figures.frontier(run, colours, scores),
        "fidelity": trust.fidelity(run, colours),
        "calibration": trust.calibration(run, colours),
    }
    training = panels(run, colours)
    found |= {f"curve_{i}": figure for i, (_, figure) in enumerate(training)}
    drawn = {name: figure for name, figure in found.items() if figure is not None}
    height = {name: figure["layout"]["height"] for name, figure in drawn.items()}
    titles = [(f"curve_{i}", title) for i, (title, _) in enumerate(training)]
    return drawn, {"height": height, "training": titles, "trained": {curve.arm for curve in run.curves}}


def _script_json(value: Any) -> str:
    r"""Return JSON that is safe inside ``<script>``: every ``<`` as ``\u003c``, so that no name can end the element."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _resource(name: str) -> str:
    return files("medkd.report").joinpath("templates", name).read_text(encoding="utf-8")
