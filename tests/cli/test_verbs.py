from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import medkd
from medkd.cli import app, call
from medkd.errors import UserError
from medkd.pipeline import steps
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node

RUN = """\
name: toy
data: {source: SOURCE, folds: 3}
stages:
  teachers:
    model: {name: UNet, channels: [4, 8]}
    methods: [supervised]
  student:
    model: {name: UNet, channels: [2, 4]}
    teacher: teachers
    methods: [supervised, kd]
"""

Step = Callable[[Node, Mapping[str, Path], Path, Context], None]


@pytest.fixture
def toy(tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose steps do nothing; the current folder is empty but for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(steps, "execute", nothing)
    monkeypatch.setattr(steps, "dry_run", lambda config: ["a step takes 1 s"])
    file = tmp_path / "toy.yaml"
    file.write_text(RUN.replace("SOURCE", str(tiny_dataset)))
    return file


def nothing(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    if node.kind == "report":
        (out / "report.html").write_text("a page")


def failing(kind: BaseException, *nodes: str) -> Step:
    def step(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
        if node.name in nodes:
            raise kind
        nothing(node, inputs, out, context)

    return step


VERBS = ("run", "check", "predict", "evaluate", "export", "report", "gate", "methods", "schema")
DATA_VERBS = ("data inspect", "data download", "data phantom")


@pytest.mark.parametrize("verb", [*VERBS, *DATA_VERBS])
def test_every_verb_has_help_with_a_first_line_that_fits(verb: str) -> None:
    told = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert told.exit_code == 0
    assert told.output.splitlines()[2].strip().endswith(".")
    listed = CliRunner().invoke(app, [*verb.split()[:-1], "--help"]).output
    (line,) = (line for line in listed.splitlines() if line.split()[:1] == verb.split()[-1:])
    assert not line.endswith("...")


def test_without_a_verb_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call([]) == 0
    assert "predict" in capsys.readouterr().out
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"medkd {medkd.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument"),
        (["run", "x.yaml", "--jbs", "2"], "No such option: --jbs"),
        (["run", "x.yaml", "--jobs", "0"], "--jobs"),
        (["run", "absent.yaml"], "absent.yaml: no such file"),
        (["check", "absent.yaml"], "absent.yaml: no such file"),
        (["methods", "kdd"], "method 'kdd' is not in the catalogue (did you mean 'kd'?)"),
        (["predict", "absent", "a", "b"], "model folder absent does not exist"),
        (["evaluate", "absent", "b"], "absent does not exist"),
        (["export", "absent"], "absent is no folder"),
        (["export", ".", "--to", "onx"], "--to onx: no such format (did you mean 'onnx'?)"),
        (["export", "."], ". is no run's folder, so say where to"),
        (["report", "absent"], "absent is no folder of a finished run"),
        (["data", "inspect", "absent"], "dataset 'absent' was not found"),
        (["data", "phantom", "p", "--modality", "us"], "--modality us: no such modality"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKD_DATA", raising=False)
    assert call(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("medkd: error: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_tells_where_its_report_is(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", str(toy)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "report: runs/toy/report.html"
    assert "12 nodes done" in told.out
    assert "done    train.student.m0.f0.s0.main" in told.err
    assert call(["run", str(toy)]) == 0
    again = capsys.readouterr()
    assert again.out.splitlines()[0] == "all 12 nodes were already done; nothing to do"
    assert again.out.splitlines()[-1] == "report: runs/toy/report.html"
    assert again.err == ""


def test_a_run_tells_programs_the_same(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", str(toy), "--runs", "elsewhere", "--only", "teachers", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == "elsewhere/toy"
    assert told["report"] is None
    assert set(told["done"]) == set(told["nodes"])
    assert "train.teachers.m0.f0.s0.main" in told["done"]
    assert (Path(told["nodes"]["prepare"]) / "manifest.json").is_file()


def test_overrides_reach_the_run(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", str(toy), "--set", "name=other", "--set", "train.steps=3"]) == 0
    assert "steps: 3" in Path("runs/other/config.yaml").read_text()
    assert call(["run", str(toy), "--set", "train.stps=3"]) == 2
    assert "--set train.stps: train.stps: unknown key (did you mean 'steps'?)" in capsys.readouterr().err


def test_a_failed_node_is_told_and_the_rest_is_kept(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "execute", failing(UserError("case 3 is empty"), "train.teachers.m0.f0.s0.main"))
    assert call(["run", str(toy)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[-1] == (
        "medkd: error: train.teachers.m0.f0.s0.main: case 3 is empty "
        "(2 nodes done and kept, 9 nodes that need them not begun)"
    )
    monkeypatch.setattr(steps, "execute", nothing)
    assert call(["run", str(toy)]) == 0
    assert "10 nodes done" in capsys.readouterr().out


def test_several_failed_nodes_have_a_line_each(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = ("train.teachers.m0.f0.s0.main", "train.student.m0.f0.s0.control")
    monkeypatch.setattr(steps, "execute", failing(UserError("no"), *nodes))
    assert call(["run", str(toy), "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["failed"] == dict.fromkeys(nodes, "no")
    assert told.err.splitlines()[-3:] == [
        "medkd: error: 2 nodes failed (1 node done and kept, 9 nodes that need them not begun):",
        *(f"  {node}: no" for node in nodes),
    ]


def test_a_bug_shows_its_traceback_and_exit_code_1(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "execute", failing(KeyError("oops"), "prepare"))
    assert call(["run", str(toy)]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "test_verbs.py" in told


def test_ctrl_c_promises_to_go_on_and_does(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "execute", failing(KeyboardInterrupt(), "train.student.m0.f0.s0.control"))
    assert call(["run", str(toy)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "medkd: interrupted; finished nodes are kept, run the same command to resume"
    )
    monkeypatch.setattr(steps, "execute", nothing)
    assert call(["run", str(toy)]) == 0
    assert "already done" in capsys.readouterr().out


def test_check_tells_what_it_found(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", str(toy)]) == 0
    told = capsys.readouterr().out
    assert "Tiny: 6 labelled and 2 unlabelled cases, 3 classes, channels CT" in told
    assert "2 stages make 12 nodes, 3 of them trainings" in told
    assert "a step takes 1 s" in told
    assert told.endswith("toy: nothing wrong found\n")
    assert call(["check", str(toy), "--json", "--set", "stages.student.model.chanels=[4]"]) == 2
    wrong = json.loads(capsys.readouterr().out)
    assert wrong["ok"] is False
    assert "did you mean 'channels'" in wrong["errors"][0]
    assert not Path("runs").exists()


def test_check_finds_that_the_data_are_missing(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", str(toy), "--set", "data.source=absent"]) == 2
    assert "dataset 'absent' was not found" in capsys.readouterr().err


def test_methods_are_listed_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("kd ") and "cached" in line for line in lines)
    assert any(line.startswith("supervised ") and " none " in line for line in lines)
    assert call(["methods", "kd"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("kd(")
    assert "Reference:\n    Hinton" in told
    assert call(["methods", "kd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["temperature"] == 2.0


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)["properties"]) >= {"name", "data", "stages", "train"}


def test_a_dataset_is_inspected(tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["data", "inspect", str(tiny_dataset)]) == 0
    told = capsys.readouterr().out
    assert "6 labelled and 2 unlabelled cases" in told
    assert any(line.split()[:2] == ["spleen", "6"] for line in told.splitlines())
    label = tiny_dataset / "labelsTr" / "tiny_00.nii.gz"
    label.write_bytes(label.read_bytes()[:50])
    assert call(["data", "inspect", str(tiny_dataset), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["broken"] is True
    assert call(["data", "inspect", str(tiny_dataset)]) == 2
    assert "broken: " in capsys.readouterr().out


def test_label_maps_are_evaluated(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = str(tiny_dataset / "labelsTr")
    names = ["--classes", str(tiny_dataset / "dataset.json"), "--metrics", "dice, nsd_1mm"]
    assert call(["evaluate", labels, labels, *names, "--out", str(tmp_path / "scores.csv")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["liver", "dice", "6", "0", "1.0000", "0.0000", "1.0000"] in lines
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 13
    assert call(["evaluate", labels, labels, *names, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rows"]) == 12
    assert told["problems"] == []


def test_phantoms_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["data", "phantom", str(tmp_path / "p"), "--cases", "1", "--unlabelled", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'p'}\n"
    assert (tmp_path / "p" / "dataset.json").is_file()


def test_a_model_is_exported_and_predicts(toy: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(tiny_dataset)
    images = tiny_dataset / "imagesUn"
    assert call(["predict", str(model), str(images), "out"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/tiny_06.nii.gz", "out/tiny_07.nii.gz"]
    (images / "tiny_07.nii.gz").write_bytes(b"broken")
    assert call(["predict", str(model), str(images), "out", "--overwrite", "--json"]) == 2
    told = capsys.readouterr()
    manifest = json.loads(told.out)
    assert [case["status"] for case in manifest["cases"]] == ["done", "failed"]
    assert set(manifest["cases"][0]["seconds"]) == {"load", "prepare", "network", "restore", "write"}
    assert manifest["options"] == {"overlap": 0.5, "mirror": False, "skip_air": False}
    assert told.err.splitlines()[-1] == "medkd: error: 1 of 2 cases failed; the others are done"
    assert call(["export", str(model), "bundled", "--to", "bundle"]) == 0
    assert capsys.readouterr().out == "bundle: bundled\n"
    assert (Path("bundled") / "configs" / "metadata.json").is_file()


def test_several_images_are_labelled_and_looked_at(
    toy: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = tiny_model(tiny_dataset), tiny_dataset / "imagesUn"
    threads = torch.get_num_threads()
    several = [str(images / "tiny_06.nii.gz"), str(images / "tiny_07.nii.gz")]
    try:
        assert call(["predict", str(model), *several, "out", "--format", "nrrd", "--threads", "1", "--skip-air"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines() == ["out/tiny_06.nrrd", "out/tiny_07.nrrd"]
    assert '"spleen"' in (Path("out") / "labels.txt").read_text()
    assert "1 liver " in (Path("out") / "labels.ctbl").read_text()
    assert call(["predict", str(model), *several, "out", "--format", "nrrd", "--skip-air"]) == 0
    assert capsys.readouterr().out.count("was there; --overwrite predicts it again") == 2
    assert call(["predict", str(model), *several, "out", "--format", "nrd"]) == 2
    assert "labels cannot be written as 'nrd' (did you mean 'nrrd'?)" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["newer", "tampered", "cut", "no weights", "input as output"])
def test_what_no_prediction_is_made_with(
    toy: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    model, images = tiny_model(tiny_dataset), tiny_dataset / "imagesUn"
    card, weights, out = model / "model.json", model / "model.safetensors", "out"
    if what == "newer":
        card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 99}))
        said = "has format 99, this medkd reads up to 1; upgrade medkd"
    elif what == "tampered":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        said = "differs from the hash in model.json: changed or damaged"
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
        said = "differs from the hash in model.json: changed or damaged"
    elif what == "no weights":
        weights.unlink()
        said = "has no model.safetensors"
    else:
        out, said = str(images), "would replace the images of the same names; give another output folder"
    before = sorted(images.iterdir())
    assert call(["predict", str(model), str(images), out]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("medkd: error: ")
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert sorted(images.iterdir()) == before
    assert not Path("out").exists()


def test_exports_are_compared_on_real_cases(toy: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    model = tiny_model(tiny_dataset)
    data = ("--data", str(tiny_dataset), "--cases", "2", "--gate", "0.5")
    assert call(["export", str(model), "all", "--to", "onnx,pt2", *data]) == 0
    told = capsys.readouterr().out
    assert told.startswith("onnx: all/onnx\n  2 real cases: the same class in")
    assert "  fp16: kept" in told
    assert "pt2: all/pt2\n  2 real cases" in told
    assert (Path("all") / "onnx" / "model_card.md").is_file()
    assert call(["export", str(model), "bare"]) == 0
    assert "compared on noise alone: no real cases; --data DATASET gives some" in capsys.readouterr().out
    assert call(["export", str(model), "all", "--to", "onnx,opnvino"]) == 2
    assert "--to opnvino: no such format (did you mean 'openvino'?)" in capsys.readouterr().err


def tiny_model(dataset: Path) -> Path:
    """Write an untrained model folder for the tiny dataset."""
    from medkd.data.dataset import load_dataset
    from medkd.data.fingerprint import fingerprint
    from medkd.data.plan import make_plan
    from medkd.networks.weights import ModelCard, save_network
    from medkd.networks.zoo import build, complete

    loaded = load_dataset(dataset)
    plan = make_plan(fingerprint(loaded), loaded, {"patch": [16, 16, 16]})
    size: dict[str, Any] = {"in_channels": 1, "classes": 3, "patch": plan.patch}
    spec = complete({"name": "UNet", "channels": [2, 4]}, **size)
    plain = {"labels": loaded.labels, "plan": plan.to_json(), "channels": loaded.channels}
    folder = dataset.parent / "model"
    save_network(folder, build(spec, **size), ModelCard(network=spec, in_channels=1, classes=3, **plain))
    return folder
