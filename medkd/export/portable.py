"""One folder with everything: the network and its smaller variants, what happens before and after, the certificate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medkd.data.hashing import file_hash
from medkd.errors import UserError
from medkd.export.evidence import Evidence
from medkd.export.onnx import export_onnx
from medkd.export.page import model_page
from medkd.export.parity import Parity, compare, require
from medkd.export.quantise import half_onnx, int8_onnx
from medkd.export.sessions import open_session
from medkd.export.variants import GATE, Verdict, judge, refusal, tell
from medkd.inference.model import SegmentationModel
from medkd.inference.onnx import CARD, GRAPH
from medkd.inference.window import SIGMA, Network
from medkd.networks.weights import ModelCard, read_card

CERTIFICATE = "parity.json"
PAGE = "model_card.md"
OVERLAP = 0.5
NO_CASES = "there were no real cases to compare on; export a run's folder, or give --data"


@dataclass(frozen=True)
class Built:
    """A network file that was made, before it is known whether it may stay.

    Args:
        file: the one to open.
        files: all that belong to it, ``file`` first.
        how: in a few words.
        facts: what else ``student.json`` says of it.
    """

    file: str
    files: tuple[str, ...]
    how: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Args:
        form: ``onnx``, ``openvino``...
        folder: where.
        parity: trained against exported network on real cases; None where there were none.
        verdicts: on the smaller variants, those refused too.
    """

    form: str
    folder: Path
    parity: Parity | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def note(self) -> str:
        """One line on the variants."""
        told = (
            f"{one.variant}: Dice loss {tell(one.loss)}" if one.kept else f"{one.variant} refused: {one.reason}"
            for one in self.verdicts
        )
        return "; ".join(told)


def export_portable(
    model_folder: Path, out_folder: Path, *, evidence: Evidence | None = None, gate: float = GATE
) -> Exported:
    """Write the folder that ``medkd-run`` and ``medkd predict`` read: ``student.onnx`` and all around it.

    Beside it, where they pass: ``student.int8.onnx`` and ``student.fp16.onnx``.

    Args:
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: an older export there is replaced.
        evidence: real cases; None leaves the certificate and the variants out.
        gate: largest mean loss of Dice with which a variant is kept.

    Raises:
        UserError: no model there, a missing extra, or a network that does not answer as the trained one does.
    """
    with staged(out_folder) as part:
        export_onnx(model_folder, part)
        body = json.loads((part / CARD).read_text())
        makers: dict[str, Callable[[str], str]] = {}
        if evidence is not None:
            patches = evidence.patches
            makers = {
                "int8": lambda file: int8_onnx(part / GRAPH, part / file, patches),
                "fp16": lambda file: half_onnx(part / GRAPH, part / file),
            }
        built, refused = make_variants(makers, "student.{}.onnx")
        whole = {"fp32": Built(GRAPH, (GRAPH,), "as trained"), **built}
        return replace(seal(part, "onnx", model_folder, body, whole, refused, evidence, gate), folder=out_folder)


def make_variants(
    makers: Mapping[str, Callable[[str], str]], pattern: str, more: Sequence[str] = ()
) -> tuple[dict[str, Built], dict[str, Verdict]]:
    """Make each variant under its file name; one that cannot be made is refused with the reason.

    Args:
        makers: name -> writes the file of that name and says how.
        pattern: file name with ``{}`` for the variant.
        more: patterns of the files that come with it.
    """
    built: dict[str, Built] = {}
    refused: dict[str, Verdict] = {}
    for name, make in makers.items():
        file = pattern.format(name)
        try:
            how = make(file)
        except UserError as error:
            refused[name] = refusal(name, str(error))
            continue
        built[name] = Built(file, (file, *(other.format(name) for other in more)), how)
    return built, refused


def seal(
    folder: Path,
    form: str,
    model_folder: Path,
    body: dict[str, Any],
    built: Mapping[str, Built],
    refused: Mapping[str, Verdict],
    evidence: Evidence | None,
    gate: float,
    open_network: Callable[[Path], Network] | None = None,
) -> Exported:
    """Compare what was built, throw out what fails, and write certificate, card and, last, ``student.json``.

    Args:
        folder: holds the files of ``built``.
        form: name of the format.
        model_folder: the trained network.
        body: what ``student.json`` says already.
        built: variants by name, ``fp32`` among them.
        refused: variants that could not be made.
        evidence: real cases, or None.
        gate: largest mean loss of Dice.
        open_network: how to run a file; None for the runtimes of ``medkd-run``.

    Raises:
        UserError: fp32 does not answer as the trained network does.
    """
    open_network = open_network or run_outside
    parity, verdicts = None, dict(refused)
    if evidence is not None:
        trained = SegmentationModel.from_folder(model_folder, device="cpu")
        # On the grid of the plan both get the same windows, so that only the arithmetic can differ.
        models = {
            name: SegmentationModel([open_network(folder / one.file)], trained.card) for name, one in built.items()
        }
        fp32 = models.pop("fp32")
        parity = compare(trained, fp32, ((case.name, case.image()) for case in evidence.cases))
        require(parity)
        verdicts |= judge(fp32, models, evidence, gate=gate) if models else {}
    else:
        verdicts |= {name: refusal(name, NO_CASES, gate) for name in built if name != "fp32"}
    kept = {name: one for name, one in built.items() if name == "fp32" or verdicts[name].kept}
    for name in built.keys() - kept.keys():
        for file in built[name].files:
            (folder / file).unlink(missing_ok=True)
    card = read_card(model_folder)
    body |= {
        "form": form,
        "files": {name: _described(folder, one, verdicts.get(name)) for name, one in kept.items()},
        "refused": {name: one.reason for name, one in verdicts.items() if not one.kept},
        "inference": around(card),
        "licences": dict(card.provenance.get("licences", {})),
        "leakage": str(card.provenance.get("leakage", "not checked")),
    }
    certificate = {
        "format": form,
        "cases_from": evidence.source if evidence is not None else "no real cases: compared on noise alone",
        **(parity.to_json() if parity is not None else {"passed": None, "cases": []}),
        "variants": {name: one.to_json() for name, one in verdicts.items()},
    }
    exported = Exported(form, folder, parity, tuple(verdicts.values()))
    _write(folder / CERTIFICATE, json.dumps(certificate, indent=1))
    _write(folder / PAGE, model_page(body, card, parity, exported.verdicts, certificate["cases_from"]))
    _write(folder / CARD, json.dumps(body, indent=1))
    return exported


def around(card: ModelCard) -> dict[str, Any]:
    """Return what happens before and after the network, for who writes a runtime of their own."""
    return {
        "orientation": "RAS",
        "channels": list(card.channels),
        "spacing_mm": card.plan["spacing_mm"],
        "resampling": "cubic, nearest across an axis more than three times thicker; the field of view is kept",
        "intensity": card.plan["intensity"],
        "patch": card.plan["patch"],
        "overlap": OVERLAP,
        "blending": {"kind": "gaussian", "sigma": SIGMA, "least": 1e-3, "of": "logits"},
        "activation": "softmax over the classes, after blending",
        "restoring": "probabilities, linear, to the grid of the input; then the most probable class",
    }


def run_outside(path: Path) -> Network:
    """Return an exported network, run by its own runtime, as a function of tensors on the CPU."""
    session = open_session(path)

    def network(image: Tensor) -> Tensor:
        return torch.from_numpy(session(image.detach().cpu().contiguous().numpy()))

    return network


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` to write in; its files replace those of an older export, ``student.json`` last.

    Raises:
        UserError: ``folder`` holds files but no export.
    """
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in (CARD, GRAPH)):
        raise UserError(f"{folder} holds something else than an export; give another folder")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        folder.mkdir(parents=True, exist_ok=True)
        old = [CARD, CERTIFICATE, PAGE, *(path.name for path in folder.glob("student.*"))]
        for name in dict.fromkeys(old):  # the card goes first: a folder without it claims nothing
            (folder / name).unlink(missing_ok=True)
        for path in sorted(part.iterdir(), key=lambda path: path.name == CARD):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _described(folder: Path, built: Built, verdict: Verdict | None) -> dict[str, Any]:
    paths = [folder / name for name in built.files]
    return {
        "file": built.file,
        "sha256": {path.name: file_hash(path) for path in paths},
        "bytes": sum(path.stat().st_size for path in paths),
        "how": built.how,
        **({} if verdict is None else {"dice_loss": verdict.loss, "agreement": verdict.agreement}),
        **built.facts,
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
