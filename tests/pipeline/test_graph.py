from __future__ import annotations

from pathlib import Path

import pytest

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, parse
from medkd.pipeline.datakey import folder_key
from medkd.pipeline.graph import Graph, build_graph, exported_stage
from medkd.pipeline.nodes import Node, train_job

GOOD = """\
name: liver
data: {source: somewhere, folds: 5}
train: {steps: 3000}
stages:
  student:
    model: {name: UNet, channels: [8, 16, 32]}
    teacher: teachers
    methods: [supervised, kd]
    train: {steps: 500}
  teachers:
    model: [{name: DynUNet}, {name: SegResNet}]
    methods: [supervised]
evaluate: {metrics: [dice]}
export: [onnx]
"""


def read(*overrides: str) -> RunConfig:
    return parse(yamlfile.parse(GOOD, "run.yaml").override(overrides))


def graph_of(*overrides: str, data: str = "data") -> Graph:
    return build_graph(read(*overrides), data)


def names(graph: Graph, *kinds: str) -> list[str]:
    return [node.name for node in graph.nodes if not kinds or node.kind in kinds]


def needs(graph: Graph, name: str) -> list[str]:
    (node,) = (node for node in graph.nodes if node.name == name)
    return [one.name for one in graph.dependencies[node]]


def changed(*overrides: str, data: str = "data") -> set[str]:
    """Return the names of the nodes that are done again when the run is changed so."""
    before, after = graph_of(), graph_of(*overrides, data=data)
    known = {(node.name, key) for node, key in before.keys.items()}
    return {node.name for node, key in after.keys.items() if (node.name, key) not in known}


TEACHERS = ["train.teachers.m0.f0.s0.main", "train.teachers.m1.f0.s0.main"]


def test_the_nodes_of_a_run() -> None:
    graph = graph_of()
    assert names(graph) == [
        "prepare",
        *TEACHERS,
        "targets.teachers.f0",
        "train.student.m0.f0.s0.main",
        "train.student.m0.f0.s0.control",
        "answers.teachers.f0",
        "evaluate.student.f0.s0.main",
        "evaluate.student.f0.s0.control",
        "cost.student",
        "evaluate.teachers.f0.s0.main",
        "cost.teachers",
        "export.student",
        "report",
    ]
    assert needs(graph, "targets.teachers.f0") == ["prepare", *TEACHERS]
    assert needs(graph, "train.student.m0.f0.s0.main") == ["prepare", "targets.teachers.f0"]
    assert needs(graph, "train.student.m0.f0.s0.control") == ["prepare"]
    assert needs(graph, "evaluate.teachers.f0.s0.main") == ["prepare", *TEACHERS]
    assert needs(graph, "export.student") == ["prepare", "train.student.m0.f0.s0.main"]
    assert needs(graph, "report") == names(graph)[:-1]


def test_every_node_comes_after_what_it_needs() -> None:
    graph = graph_of("data.run_folds=[0, 3]", "stages.student.seeds=[0, 1, 2]", "stages.student.init=teachers")
    seen: set[Node] = set()
    for node in graph.nodes:
        assert set(graph.dependencies[node]) <= seen
        seen.add(node)
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    assert len(set(graph.keys.values())) == len(graph.nodes)


def test_folds_never_meet_before_the_report() -> None:
    graph = graph_of("data.run_folds=[0, 3]")
    for node in graph.nodes:
        if node.fold is not None:
            assert {one.fold for one in graph.dependencies[node]} <= {None, node.fold}


def test_students_of_every_seed_share_the_first_teachers() -> None:
    graph = graph_of("stages.student.seeds=[4, 5]", "stages.teachers.seeds=[0, 1]")
    assert names(graph, "targets") == ["targets.teachers.f0"]
    assert needs(graph, "targets.teachers.f0") == ["prepare", *TEACHERS]
    assert needs(graph, "train.student.m0.f0.s5.main") == ["prepare", "targets.teachers.f0"]
    assert needs(graph, "export.student") == [
        "prepare",
        "train.student.m0.f0.s4.main",
        "train.student.m0.f0.s5.main",
    ]


def test_a_method_that_reads_more_than_logits_has_its_teachers_live(monkeypatch: pytest.MonkeyPatch) -> None:
    from medkd.methods import catalogue

    monkeypatch.setattr(catalogue, "cacheable", lambda name, arguments: name != "kd")
    graph = graph_of("stages.student.control=[steps, pseudo]")
    assert needs(graph, "train.student.m0.f0.s0.main") == ["prepare", *TEACHERS]
    # Hard labels need no more than the teachers' probabilities, whatever the method reads.
    assert needs(graph, "train.student.m0.f0.s0.pseudo") == ["prepare", "targets.teachers.f0"]
    with pytest.raises(UserError, match="same_loss feeds labels"):
        read("stages.student.control=same_loss")


def test_each_arm_reads_what_its_name_says() -> None:
    config = read("stages.student.control=[steps, same_loss, pseudo]")
    arms = ("main", "control", "same_loss", "pseudo")
    jobs = {arm: train_job(config, Node("train", "student", 0, 0, 0, arm)) for arm in arms}
    assert {arm: [m.name for m in job.methods] for arm, job in jobs.items()} == {
        "main": ["supervised", "kd"],
        "control": ["supervised"],
        "same_loss": ["supervised", "kd"],
        "pseudo": ["supervised"],
    }
    assert {arm for arm, job in jobs.items() if job.unlabelled} == {"main", "pseudo"}
    assert {arm for arm, job in jobs.items() if job.teacher} == {"main", "pseudo"}
    assert {arm for arm, job in jobs.items() if job.cached} == {"main", "pseudo"}
    assert {arm for arm, job in jobs.items() if job.labels_as_teacher} == {"same_loss"}
    assert {arm for arm, job in jobs.items() if job.hard_teacher} == {"pseudo"}
    assert {job.train.steps for job in jobs.values()} == {500}


def test_a_method_that_needs_nothing_reads_unlabelled_cases_without_a_teacher() -> None:
    alone = ["stages.teachers.methods=[supervised, mean_teacher]", "stages.teachers.unlabelled=true"]
    node = Node("train", "teachers", 0, 0, 0, "main")
    assert train_job(read(*alone), node).unlabelled
    assert not train_job(read(alone[0]), node).unlabelled
    # A student's control arm has lost its teacher, and unlabelled cases with it.
    beside = read("stages.student.methods=[supervised, kd, mean_teacher]")
    assert not train_job(beside, Node("train", "student", 0, 0, 0, "control")).unlabelled
    for methods in ("[supervised]", "[supervised, okdph, byot]"):
        with pytest.raises(UserError, match=r"stages\.teachers\.unlabelled: only a teacher can speak about unlabelled"):
            read(f"stages.teachers.methods={methods}", alone[1])


def test_a_control_of_a_student_without_labels_learns_from_labels() -> None:
    config = read("stages.student.methods=[kd]")
    assert [m.name for m in train_job(config, Node("train", "student", 0, 0, 0, "control")).methods] == ["supervised"]


def test_the_draw_of_labelled_cases_follows_the_seed_only_when_asked() -> None:
    node = Node("train", "student", 0, 0, 9, "main")
    assert train_job(read("stages.student.labelled=4"), node).labelled_draw_seed == 0
    per_seed = read("stages.student.labelled=4", "stages.student.labelled_draw=per_seed")
    assert train_job(per_seed, node).labelled_draw_seed == 9


def test_a_chain_starts_from_the_weights_of_another_stage() -> None:
    graph = graph_of("stages.student.init=teachers")
    assert needs(graph, "train.student.m0.f0.s0.control") == ["prepare", "train.teachers.m0.f0.s0.main"]


STUDENT = {
    *("train.student.m0.f0.s0.main", "train.student.m0.f0.s0.control"),
    *("evaluate.student.f0.s0.main", "evaluate.student.f0.s0.control", "cost.student", "export.student", "report"),
}


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("report.title=Liver", {"report"}),
        ("evaluate.compare=[student]", {"report"}),
        ("export=[bundle]", {"export.student", "report"}),
        ("export=[]", {"report"}),
        ("stages.student.train.steps=501", STUDENT),
        ("stages.student.methods.1={name: kd, weight: 2}", STUDENT - {n for n in STUDENT if n.endswith("control")}),
        ("stages.student.control=none", {"report"}),
        ("stages.student.seeds=[0]", set()),
        ("stages.student.model.name=BasicUNet", STUDENT),
        ("train.workers=2", set()),
        ("train.threads=1", set()),
        ("train.tensorboard=true", set()),
        ("data.run_folds=[0]", set()),
        ("data.source=elsewhere", set()),
        ("stages.student.methods.0={name: supervised, weight: 1}", set()),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_nothing_else(override: str, again: set[str]) -> None:
    assert changed(override) == again


def test_a_study_is_a_matter_of_the_report_alone() -> None:
    assert changed("evaluate.baseline=student.control") == {"report"}


def test_changes_far_up_redo_all_below() -> None:
    everything = set(names(graph_of()))
    assert changed("plan={patch: [64, 64, 64]}") == everything
    assert changed(data="other data") == everything
    assert changed("data.seed=1") == everything
    assert changed("data.folds=4") == everything
    seeded = changed("train.seed=1")  # seeds are in the names, so every node that has one is another
    assert {"targets.teachers.f0", "cost.student", "export.student", "report"} < seeded
    assert changed("stages.teachers.train.steps=2") == everything - {
        *("prepare", "train.student.m0.f0.s0.control")  # evaluated again: its agreement with the teacher is told
    }
    assert changed("evaluate.metrics=[iou]") == {"report", *(n for n in everything if n.startswith("evaluate"))}


def test_what_teachers_say_of_test_cases_is_kept_once_for_all_students() -> None:
    graph = graph_of("stages.student.seeds=[0, 1]")
    assert names(graph, "answers") == ["answers.teachers.f0"]
    assert needs(graph, "answers.teachers.f0") == ["prepare", *TEACHERS]
    for arm in ("main", "control"):
        for seed in (0, 1):
            assert "answers.teachers.f0" in needs(graph, f"evaluate.student.f0.s{seed}.{arm}")
    assert "answers.teachers.f0" not in needs(graph, "evaluate.teachers.f0.s0.main")
    assert "answers.teachers.f0" not in [node.name for node in graph.of_stage("teachers")]
    assert names(graph_of("evaluate.fidelity=false"), "answers") == []
    assert names(graph_of("stages.student.targets={mirror: true}"), "answers") == ["answers.teachers.f0.mirror"]
    (answers,) = (node for node in graph.nodes if node.kind == "answers")
    assert "metrics" not in graph.parts[answers], "the stage's own node measures it"


def test_a_margin_is_a_matter_of_the_report_alone() -> None:
    assert changed("evaluate.margin=0.01") == {"report"}


def test_the_control_of_the_same_compute_depends_on_what_distillation_computed() -> None:
    arm = "train.student.m0.f0.s0.compute"
    on = ("stages.student.control=[steps, compute]",)
    graph = graph_of(*on)
    assert needs(graph, arm) == ["prepare"]
    assert changed(*on) == {arm, "evaluate.student.f0.s0.compute", "report"}

    def key(*overrides: str) -> str:
        keys = graph_of(*on, *overrides).keys
        return next(value for node, value in keys.items() if node.name == arm)

    assert key() == key("stages.teachers.train.steps=7"), "how well the teacher was trained costs the student nothing"
    assert key() != key("stages.teachers.model.0={name: BasicUNet}")
    assert key() != key("stages.student.targets={mirror: true}")
    assert key() != key("stages.student.methods=[supervised, at]"), "a live teacher computes in every step"
    job = train_job(read(*on), Node("train", "student", 0, 0, 0, "compute"))
    assert (job.teacher, [m.name for m in job.methods]) == ((), ["supervised"])
    assert job.taught is not None
    assert job.taught.cached
    assert [spec["name"] for spec in job.taught.networks[0]] == ["DynUNet", "SegResNet"]


def test_another_network_in_the_ensemble_leaves_the_others_trained() -> None:
    assert "train.teachers.m1.f0.s0.main" not in changed("stages.teachers.model.0={name: BasicUNet}")


def test_keys_do_not_depend_on_the_order_of_the_file() -> None:
    head, tail = GOOD.split("  student:\n")
    student, rest = tail.split("  teachers:\n")
    teachers, end = rest.split("evaluate:")
    turned = f"{head}  teachers:\n{teachers}  student:\n{student}evaluate:{end}"
    config = parse(yamlfile.parse(turned, "turned.yaml"))
    keys = {node.name: key for node, key in build_graph(config, "data").keys.items()}
    before = {node.name: key for node, key in graph_of().keys.items()}
    # The report lists its arms in the order of the file, so it alone may differ.
    assert {n: k for n, k in keys.items() if n != "report"} == {n: k for n, k in before.items() if n != "report"}


def test_a_teacher_from_outside_counts_by_its_content(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    override = f"stages.student.teacher=[teachers, {model}]"
    before = graph_of(override).keys
    (targets,) = (node for node in before if node.kind == "targets")
    assert read(override).teachers_labelled(targets.stage) == ("teachers", str(model))
    (model / "model.json").write_text("[]")
    assert graph_of(override).keys[targets] != before[targets]
    (model / "model.json").write_text("{}")
    assert graph_of(override).keys == before
    with pytest.raises(UserError, match="teacher models/absent does not exist"):
        graph_of("stages.student.teacher=models/absent")


def test_a_folder_counts_by_names_and_content_not_by_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    assert folder_key(tmp_path / "a") == folder_key(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert folder_key(tmp_path / "a") != folder_key(tmp_path / "b")
    assert folder_key(tmp_path / "a" / "x") == folder_key(tmp_path / "b" / "y")
    with pytest.raises(UserError, match="cannot be read"):
        folder_key(tmp_path / "absent")


def test_one_stage_brings_only_what_it_needs() -> None:
    graph = graph_of()
    assert [node.name for node in graph.of_stage("teachers")] == [
        *("prepare", *TEACHERS, "evaluate.teachers.f0.s0.main", "cost.teachers")
    ]
    assert "targets.teachers.f0" in [node.name for node in graph.of_stage("student")]
    assert "report" not in [node.name for node in graph.of_stage("student")]


def test_the_last_stage_with_a_teacher_is_shipped() -> None:
    assert exported_stage(read()) == "student"
    plain = read("stages.student.methods=[supervised]", "stages.student.teacher=null", "export=null")
    assert exported_stage(plain) == "teachers"


def test_a_method_of_a_new_version_is_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from medkd.methods.logits.kd import KD

    before = graph_of()
    monkeypatch.setattr(KD, "version", 2)
    after = graph_of()
    again = {node.name for node in before.nodes if before.keys[node] != after.keys[node]}
    assert again == STUDENT - {n for n in STUDENT if n.endswith("control")}


INNER = "stages.teachers.inner_folds=2"


def test_inner_folds_train_each_model_once_a_part() -> None:
    graph = graph_of(INNER)
    parts = [f"train.teachers.m{m}.p{p}.f0.s0.main" for m in (0, 1) for p in (0, 1)]
    assert [name for name in names(graph, "train") if "teachers" in name] == parts
    # The ensemble of all of them teaches, and is what is measured as the teachers' arm.
    assert needs(graph, "targets.teachers.f0.out_of_fold") == ["prepare", *parts]
    assert needs(graph, "evaluate.teachers.f0.s0.main") == ["prepare", *parts]
    assert needs(graph, "cost.teachers") == ["prepare", *parts]
    assert len({graph.keys[node] for node in graph.nodes}) == len(graph.nodes)
    jobs = [train_job(read(INNER), node) for node in graph.nodes if ".p1." in node.name]
    assert [job.part for job in jobs] == [(1, 2), (1, 2)]
    assert all(job.to_json()["part"] == (1, 2) for job in jobs)


def test_a_node_that_leaves_nothing_out_keeps_its_name_and_key() -> None:
    node = Node("train", "student", 0, 0, 0, "main")
    assert node.name == "train.student.m0.f0.s0.main"
    assert not {"part", "allow_leakage", "targets", "inner_folds"} & train_job(read(), node).to_json().keys()
    (targets,) = (node for node in graph_of().nodes if node.kind == "targets")
    assert graph_of().parts[targets] == {"fold": 0, "outside": []}


def test_stages_that_want_other_targets_have_their_own() -> None:
    stage = "{model: {name: UNet}, teacher: teachers, methods: [kd], targets: %s}"
    wanted = {"b": "{calibrate: true, mirror: true}", "c": "{encoding: topk, k: 4}", "d": "ensemble"}
    more = [f"stages.{name}={stage % targets}" for name, targets in wanted.items()]
    told = names(graph_of(*more), "targets")
    assert told == ["targets.teachers.f0", "targets.teachers.f0.mirror-calibrate", "targets.teachers.f0.topk-k4"]
    assert "targets.teachers.f0.out_of_fold-topk-k4" in names(graph_of(INNER, *more), "targets")
    # With inner folds nobody answers about what he learned from, unless that is asked for.
    assert "targets.teachers.f0" in names(graph_of(INNER, *more), "targets")
    assert changed("stages.student.targets.calibrate=true") == {
        "targets.teachers.f0.calibrate",
        *(n for n in STUDENT if not n.endswith("control")),
    }


def test_an_overridden_leak_makes_other_nodes() -> None:
    """Taking the override back must not find the contaminated student finished."""
    again = changed("allow_leakage=teachers")
    assert again == {"targets.teachers.f0", *(n for n in STUDENT if not n.endswith("control"))}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.teachers.targets=out_of_fold"], "stages.teachers.targets: a teacher's answers are stored, and this"),
        (["stages.student.targets={k: 3}"], "stages.student.targets.k: is the number of classes that `encoding: topk`"),
        (["stages.student.targets=out_of_fold"], "out_of_fold needs teachers that left cases out; give stage teachers"),
        (["stages.student.targets=out_of_folds"], "stages.student.targets: should be 'auto', 'ensemble' or"),
        (["stages.student.inner_folds=2"], "stages.student.inner_folds: its teacher teachers learns from the cases"),
        (["stages.teachers.inner_folds=1"], "stages.teachers.inner_folds"),
        ([INNER, "stages.student.init=teachers"], "stages.student.init: stage teachers has inner folds, so it has no"),
        (["allow_leakage=[teacher]"], "allow_leakage.0: no stage has a teacher 'teacher' (did you mean 'teachers'?)"),
        (
            ["stages.student.methods=[at]", "stages.student.targets.calibrate=true"],
            "stages.student.targets: at reads the teacher's features bottleneck, so the teacher runs live",
        ),
    ],
)
def test_what_does_not_go_together_is_told(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as told:
        read(*overrides)
    assert said in str(told.value)


def test_an_ensemble_of_parts_is_not_exported() -> None:
    plain = ["stages.student.methods=[supervised]", "stages.student.teacher=null"]
    with pytest.raises(UserError, match="stage teachers has several models and cannot be exported"):
        read("stages.teachers.model={name: UNet}", INNER, *plain)


def test_how_rows_are_measured_is_in_their_key_where_it_is_not_the_default() -> None:
    """Rows of runs that never heard of surfaces and lesions keep their keys."""

    def key(*overrides: str) -> str:
        keys = graph_of(*overrides).keys
        return next(value for node, value in keys.items() if node.kind == "evaluate")

    assert key() == key("evaluate.surfaces=surfel")
    assert (
        len({key(), key("evaluate.surfaces=voxel"), key("evaluate.lesions=[liver]"), key("evaluate.lesions=[]")}) == 4
    )


def test_what_earlier_versions_trained_is_still_known() -> None:
    """Keys as the first released nodes have them: a key of these that changes trains everybody's teachers again."""
    keys = {node.name: key[:12] for node, key in graph_of().keys.items()}
    assert {name: keys[name] for name in ("prepare", *TEACHERS, "targets.teachers.f0", *sorted(STUDENT)[-2:])} == {
        "prepare": "4dcb0274cf04",
        "train.teachers.m0.f0.s0.main": "8fbcd167d23e",
        "train.teachers.m1.f0.s0.main": "7fc3b3b66a2f",
        "targets.teachers.f0": "1648c3222604",
        "train.student.m0.f0.s0.main": "be1e5e41d118",
        "train.student.m0.f0.s0.control": "0899a26ed3c2",
    }
