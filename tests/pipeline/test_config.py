from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, load_config, parse, schema, teacher_label
from medkd.pipeline.rules import arms_of

GOOD = """\
name: liver
data: {source: msd/Task03_Liver, folds: 5, seed: 0}
plan: auto
train: {steps: 3000, batch: 4, lr: 3e-3}
stages:
  teachers:
    model: [{name: DynUNet}, {name: SegResNet, init_filters: 16}]
    methods: [supervised]
  student:
    model: {name: UNet, channels: [8, 16, 32]}
    teacher: teachers
    methods: [supervised, {name: kd, temperature: 2, weight: {ramp: [0, 1], over: 0.1}}]
    train: {steps: 500}
evaluate: {metrics: [dice, nsd_2.5mm], compare: [student, student.control]}
export: onnx
"""


def read(text: str, *overrides: str, networks: bool = False) -> RunConfig:
    return parse(yamlfile.parse(text, "run.yaml").override(overrides), networks=networks)


def complaint(text: str, *overrides: str, networks: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        read(text, *overrides, networks=networks)
    return str(caught.value)


def test_short_forms_mean_the_long_ones() -> None:
    config = read(GOOD)
    teachers, student = config.stages["teachers"], config.stages["student"]
    assert [model.spec for model in teachers.model] == [{"name": "DynUNet"}, {"name": "SegResNet", "init_filters": 16}]
    assert student.model[0].arguments == {"channels": [8, 16, 32]}
    assert student.teacher == ("teachers",)
    assert [method.name for method in student.methods] == ["supervised", "kd"]
    assert student.methods[1].arguments == {"temperature": 2}
    assert student.methods[0].span == (1.0, 1.0, 1.0)
    assert student.methods[1].span == (0.0, 1.0, 0.1)
    assert config.plan == {}
    assert config.export == ("onnx",)


def test_a_stage_with_a_teacher_has_a_control_and_reads_unlabelled_cases() -> None:
    config = read(GOOD)
    assert config.stages["student"].control == ("steps",)
    assert config.stages["student"].unlabelled
    assert config.stages["teachers"].control == ()
    assert not config.stages["teachers"].unlabelled
    for off in ("none", "false", "null", "[]"):
        assert read(GOOD, f"stages.student.control={off}", "evaluate.compare=null").stages["student"].control == ()
    assert not read(GOOD, "stages.student.unlabelled=false").stages["student"].unlabelled
    assert "this run has teachers, student" in complaint(GOOD, "stages.student.control=none")
    assert list(arms_of(config)) == ["teachers", "student", "student.control"]


def test_a_stage_overrides_single_training_settings() -> None:
    config = read(GOOD)
    assert (config.train_of("teachers").steps, config.train_of("student").steps) == (3000, 500)
    assert config.train_of("student").batch == 4
    assert config.seeds_of("student") == (0,)
    assert read(GOOD, "stages.student.train.seed=7").seeds_of("student") == (7,)
    assert read(GOOD, "stages.student.seeds=[1, 2]").seeds_of("student") == (1, 2)
    assert read(GOOD, "stages.student.seeds=3").seeds_of("student") == (3,)


def test_the_resolved_yaml_reads_back_to_the_same_run() -> None:
    method = "{name: supervised, as: dice, weight: 1e-5}"
    config = read(GOOD, f"stages.student.methods.0={method}", "plan={patch: [4, 4, 4]}")
    again = parse(yamlfile.parse(config.to_yaml(), "resolved.yaml"))
    assert again.resolved() == config.resolved()
    assert again.stages["student"].methods[0].label == "dice"
    assert again.stages["student"].methods[0].weight == 1e-5
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 0}", "sed: 0}", "2: data.sed: unknown key (did you mean 'seed'?); valid: folds,"),
        ("batch: 4", "batch: lots", "4: train.batch: should be a whole number or 'auto', not 'lots'"),
        ("steps: 3000", "steps: 3e3", "4: train.steps: should be a whole number, not 3000.0"),
        ("steps: 3000", "steps: true", "4: train.steps: should be a whole number"),
        ("lr: 3e-3", "lr: .nan", "4: train.lr: should be a finite number"),
        ("folds: 5", "folds: 1", "2: data.folds: should be greater than or equal to 2, not 1"),
        ("name: liver\n", "", " name: is missing; add this key"),
        ("name: liver", "name: ../liver", "1: name: should be a name of letters, digits, - and _"),
        ("{name: DynUNet}", "{nam: DynUNet}", "7: stages.teachers.model.0.name: is missing"),
        ("over: 0.1", "ovr: 0.1", "12: stages.student.methods.1.weight.ovr: unknown key (did you mean 'over'?)"),
        ("over: 0.1", "over: 0", "12: stages.student.methods.1.weight.over: should be greater than 0"),
        ("{ramp: [0, 1], over: 0.1}", "big", "12: stages.student.methods.1.weight: should be a number"),
        ("train: {steps: 500}", "train: {stps: 5}", "13: stages.student.train.stps: unknown key (did you mean"),
        (
            "train: {steps: 500}",
            "control: stps",
            "13: stages.student.control: should be 'steps', 'compute', 'same_loss'",
        ),
        ("train: {steps: 500}", "labelled: '4'", "13: stages.student.labelled: should be a whole number"),
        (
            "export: onnx",
            "export: onx",
            "15: export: should be 'onnx', 'bundle', 'torchscript', 'pt2' or 'openvino', not",
        ),
        ("export: onnx", "xport: onnx", "15: xport: unknown key (did you mean 'export'?)"),
        ("  student:", "  my student:", "9: stages.my student: should be a name of letters"),
    ],
)
def test_a_mistake_in_a_key_is_told_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert complaint(GOOD.replace(old, new)).startswith(f"run.yaml:{expected}")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("teacher: teachers", "teacher: teachrs", "11: stages.student.teacher: 'teachrs' is neither a stage"),
        ("teacher: teachers", "teacher: student", "11: stages.student.teacher: a stage cannot be its own"),
        ("teacher: teachers", "init: teacher", "11: stages.student.init: no other stage is called 'teacher' (did"),
        (
            "compare: [student, student.control]",
            "baseline: studen",
            "14: evaluate.baseline: no arm is called 'studen' (did you mean 'student'?)",
        ),
        ("[student, student.control]", "[studen]", "14: evaluate.compare.0: no arm is called 'studen' (did you"),
        ("[dice, nsd", "[dyce, nsd", "14: evaluate.metrics.0: no metric is called 'dyce' (did you mean 'dice'?)"),
        ("folds: 5", "folds: 5, run_folds: [0, 5]", "2: data.run_folds.1: fold 5 of 5"),
        ("train: {steps: 500}", "seeds: [1, 1]", "13: stages.student.seeds: a seed is named twice"),
        ("train: {steps: 500}", "control: [steps, steps]", "13: stages.student.control: an arm is named twice"),
        ("[supervised, {name: kd,", "[kd, {name: kd,", "12: stages.student.methods.1: 'kd' is there twice"),
        ("    methods: [supervised]", "    methods: [supervised]\n    control: steps", "9: stages.teachers.control: a"),
        (
            "    methods: [supervised]",
            "    methods: [supervised, kd]\n    teacher: student",
            "6: stages.teachers: stages wait for each other in a circle: teachers <- student <- teachers",
        ),
    ],
)
def test_a_mistake_between_keys_is_told_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert complaint(GOOD.replace(old, new)).startswith(f"run.yaml:{expected}")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: kd", "name: kdd", "12: stages.student.methods.1: method 'kdd' is not in the catalogue (did you"),
        ("temperature: 2", "tmperature: 2", "12: stages.student.methods.1.tmperature: method kd has no argument"),
        ("    methods: [supervised]", "    methods: [kd]", "8: stages.teachers.methods: kd needs a teacher"),
        (", {name: kd, temperature: 2, weight: {ramp: [0, 1], over: 0.1}}", "", "11: stages.student.teacher: no"),
    ],
)
def test_a_mistake_in_a_method_is_told_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert complaint(GOOD.replace(old, new)).startswith(f"run.yaml:{expected}")


def test_a_mistake_in_a_network_is_told_with_its_place() -> None:
    found = complaint(GOOD.replace("init_filters", "init_filtres").replace("name: UNet", "name: Unett"), networks=True)
    lines = found.splitlines()
    assert lines[0].startswith("run.yaml:7: stages.teachers.model.1.init_filtres: network SegResNet has no argument")
    assert "did you mean 'init_filters'" in lines[0]
    assert lines[1].startswith("run.yaml:10: stages.student.model.0: network 'Unett' is not a class")


def test_every_mistake_has_a_line_of_its_own() -> None:
    found = complaint(GOOD.replace("folds: 5", "fold: 5").replace("batch: 4", "batch: 0"))
    assert [line.split(": ")[1] for line in found.splitlines()] == ["data.fold", "train.batch"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.student.train.steps=abc", "stages.student.train.steps: stages.student.train.steps: should be a"),
        ("stages.studnt.train.steps=5", "stages.studnt.train.steps=5: no stage is called 'studnt' (did you mean"),
        ("nonsense", "nonsense: not an assignment"),
        ("=5", "=5: not an assignment"),
        ("plan.patch=[1, 1, 1]", "plan.patch=[1, 1, 1]: plan is 'auto', which has no keys"),
        ("stages.teachers.model.7.name=X", "stages.teachers.model.7.name=X: stages.teachers.model is a list of 2"),
        ("train.nope=1", "train.nope: train.nope: unknown key"),
    ],
)
def test_a_mistake_in_an_override_is_told_as_such(override: str, expected: str) -> None:
    assert complaint(GOOD, override).startswith(f"--set {expected}")


def test_overrides_are_typed_as_yaml_and_the_last_wins() -> None:
    twice = ("train.steps=1", "train.steps=2")
    config = read(GOOD, "stages.student.train.lr=1e-4", "stages.teachers.model.1.init_filters=8", *twice)
    assert config.train_of("student").lr == 1e-4
    assert config.stages["teachers"].model[1].arguments == {"init_filters": 8}
    assert config.train.steps == 2
    assert read(GOOD, "stages.teachers.train.steps=9").train_of("teachers").steps == 9


def test_a_frozen_run_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read(GOOD).train.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("3", 3),
        ("-.5", -0.5),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'5'", "5"),
        ("1:30", "1:30"),
        ("[1, a]", [1, "a"]),
        ("{a: 1e3}", {"a": 1000.0}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read_value = yamlfile.parse_value(text)
    assert read_value == value
    assert type(read_value) is type(value)
    assert yamlfile.parse(yamlfile.dump({"x": read_value}), "again").data == {"x": read_value}


def test_infinity_and_not_a_number_are_read() -> None:
    assert yamlfile.parse_value("-.inf") == -math.inf
    assert math.isnan(float(str(yamlfile.parse_value(".nan"))))


@pytest.mark.parametrize("word", ["1e-5", "null", "5", "true", "no", "a: b", "", ".inf", "x\ny", "- a", "é"])
def test_text_that_looks_like_something_else_survives(word: str) -> None:
    assert yamlfile.parse(yamlfile.dump({"x": word}), "again").data == {"x": word}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3", "2: not valid YAML"),
        ("a: 1\na: 2", "2: a: given twice"),
        ("a: !!python/object/apply:os.system [ls]", "1: the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: &x {b: 1}\nc: {<<: *x}", "2: a key should be plain text"),
        ("a: &x [*x]", "1: an alias may not contain itself"),
        ("[1]: 2", "1: a key should be plain text"),
        ("- a", " holds a list"),
        ("", " is empty"),
        ("a: 1\n---\nb: 2", "2: not valid YAML"),
        ("a: \x00", " not valid YAML"),
    ],
)
def test_yaml_that_is_not_read(text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        yamlfile.parse(text, "x.yaml")
    assert str(caught.value).startswith(f"x.yaml:{expected}")


def test_files_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_the_schema_is_json_and_knows_the_short_forms() -> None:
    text = json.dumps(schema())
    assert '"validate_every"' in text
    stage = schema()["$defs"]["Stage"]["properties"]
    assert {"type": "string"} in stage["teacher"]["anyOf"]
    assert {"$ref": "#/$defs/ModelSpec"} in stage["model"]["anyOf"]


def test_a_label_of_teachers_is_fit_for_a_folder() -> None:
    assert teacher_label(["a"]) == "a"
    assert teacher_label(["a", "b"]) == "a+b"
    assert "/" not in teacher_label(["models/nnunet.v2", "a"])
    assert teacher_label(["x/model"]) != teacher_label(["y/model"])
    assert len(teacher_label([f"stage{i}" for i in range(50)])) < 40
