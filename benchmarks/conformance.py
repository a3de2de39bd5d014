"""The table peers x rules: distillation losses of other libraries as they come, beside ours.

    python benchmarks/conformance.py                 # prints the table; absent libraries are skipped with a word
    python benchmarks/conformance.py --out docs/conformance.md

Every loss gets the logits of student and teacher as its own trainer would hand them over, with its default arguments,
temperature 2 and no weight on the labels. Losses on embedding vectors (PKT, RKD, CRD...) take no maps and are left out;
rules about trust, adapters and overlapping regions ask nothing of a plain loss.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medkd
from medkd.conformance.judge import Finding, judge
from medkd.conformance.play import Subject
from medkd.conformance.rules import RULES
from medkd.conformance.subjects import find, plain

OURS = ("kd", "dkd", "dist", "cwd", "boundary", "at", "sp")
NOT_ASKED = ("adapters", "trust", "known", "regions", "state")
"""Rules of the protocol, which a plain loss does not know."""
SHOWN = tuple(rule for rule in RULES if rule not in NOT_ASKED)
MARKS = {"pass": "yes", "fail": "**no**", "moot": "-", "exempt": "-"}

AT_OUTPUT = {"io": "output", "path": "net"}
PATHS = {
    "student_module_path": "net",
    "teacher_module_path": "net",
    "student_output_path": "net",
    "teacher_output_path": "net",
    "student_module_io": "output",
    "teacher_module_io": "output",
    "temperature": 2.0,
    "reduction": "batchmean",
}
PAIR = {"output": {"student": AT_OUTPUT, "teacher": AT_OUTPUT, "weight": 1}}
TORCHDISTILL: dict[str, dict[str, Any]] = {
    "KDLoss": {"alpha": 0.0},
    "LogitStdKDLoss": {"alpha": 0.0},
    "DISTLoss": {},
    "SKDInstanceLoss": {},
    "ATLoss": {"at_pairs": PAIR},
    "SPKDLoss": {},
    "AffinityLoss": {"reduction": "mean"},
    "ChSimLoss": {"feature_pairs": PAIR},
}
MONAI = {
    "DiceLoss": {"softmax": True},
    "DiceCELoss": {"softmax": True},
    "GeneralizedDiceLoss": {"softmax": True},
    "TverskyLoss": {"softmax": True},
    "FocalLoss": {"use_softmax": True},
    "MCCLoss": {"softmax": True},
}
"""Arguments by which a loss reads logits of exclusive classes."""


class FromTorchdistill(nn.Module):
    """Hands logits over as torchdistill's trainer does."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        shown = ({"net": {"input": logits, "output": logits}} for logits in (student, teacher.detach()))
        return self.loss(*shown)


class FromMonai(nn.Module):
    """MONAI has no distillation: its losses take the teacher's probabilities in the place of labels."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher.detach().softmax(1))


def torchdistill() -> Iterator[Subject]:
    """Yield torchdistill's losses that read two tensors."""
    from torchdistill.losses import mid_level

    for name, more in TORCHDISTILL.items():
        found = getattr(mid_level, name)
        known = inspect.signature(found.__init__).parameters
        given = {key: value for key, value in {**PATHS, **more}.items() if key in known}
        yield plain(name, lambda f=found, g=given: FromTorchdistill(f(**g)))  # type: ignore[misc]


def monai() -> Iterator[Subject]:
    """Yield MONAI's losses that take soft targets."""
    import monai.losses

    for name, given in MONAI.items():
        if (found := getattr(monai.losses, name, None)) is not None:
            yield plain(name, lambda f=found, g=given: FromMonai(f(**g)))  # type: ignore[misc]


def ours() -> Iterator[Subject]:
    """Yield some of our methods."""
    return (find(key) for key in OURS)


def judged(library: str, subjects: Callable[[], Iterator[Subject]]) -> list[tuple[str, list[Finding]]]:
    """Return every loss of a library with what the rules say; none where the library is absent."""
    try:
        every = list(subjects())
    except ImportError as error:
        print(f"{library}: skipped, {error}", file=sys.stderr)
        return []
    found = []
    for subject in every:
        print(f"{library}: {subject.name}", file=sys.stderr)
        found.append((subject.name, judge(subject, SHOWN)))
    return found


def version(package: str) -> str:
    """Return the version of a package."""
    return medkd.__version__ if package == "medkd" else metadata.version(package)


def table(rows: list[tuple[str, str, list[Finding]]]) -> str:
    """Return the table as Markdown: a loss a row, a rule a column."""
    lines = ["| library | loss | kept | " + " | ".join(SHOWN) + " |", "|---|---|---|" + "---|" * len(SHOWN)]
    for library, name, findings in rows:
        asked = [one for one in findings if one.outcome in ("pass", "fail")]
        kept = f"{sum(one.outcome == 'pass' for one in asked)}/{len(asked)}"
        lines.append(f"| {library} | {name} | {kept} | {' | '.join(MARKS[one.outcome] for one in findings)} |")
    return "\n".join(lines)


def reasons(rows: list[tuple[str, str, list[Finding]]]) -> str:
    """Return why each failed, a line a loss and rule."""
    told = []
    for _, name, findings in rows:
        failed = [one for one in findings if one.outcome == "fail"]
        told += [f"- {name}, `{one.rule}`: {one.why}" for one in failed]
    return "\n".join(told)


def main() -> None:
    """Print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description="Judge other libraries' distillation losses by medkd's rules.")
    parser.add_argument("--out", type=Path, help="also write the page there, below its line `<!-- table -->`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    libraries = {"medkd": ours, "torchdistill": torchdistill, "monai": monai}
    rows = [
        (f"{library} {version(library)}", name, findings)
        for library, subjects in libraries.items()
        for name, findings in judged(library, subjects)
    ]
    page = f"{table(rows)}\n\n## Why\n\n{reasons(rows)}\n"
    print(page)
    if arguments.out is not None:
        head = arguments.out.read_text(encoding="utf-8").partition("<!-- table -->")[0]
        made = (
            f"torch {torch.__version__}, one CPU thread; `python benchmarks/conformance.py --out docs/conformance.md`"
        )
        arguments.out.write_text(f"{head}<!-- table -->\n\n{made}\n\n{page}", encoding="utf-8")


if __name__ == "__main__":
    main()
