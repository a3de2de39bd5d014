from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, parse
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.graph import Graph, build_graph
from medkd.pipeline.local import Outcome, execute, unfinished
from medkd.pipeline.run import Finished, run

RUN = """\
name: toy
data: {source: somewhere, folds: 5}
stages:
  teachers:
    model: [{name: A}, {name: B}]
    methods: [supervised]
  student:
    model: {name: C}
    teacher: teachers
    methods: [supervised, kd]
export: [onnx]
"""

# Steps stand in a module of their own, so that a fresh process can import them.
STEPS = """\
import errno, os, signal, time
from pathlib import Path
from medkd.errors import UserError

def note(node, inputs, out, context):
    began = time.time()
    assert all((folder / "manifest.json").exists() for folder in inputs.values()), inputs
    context.progress({"node": node.name, "step": 1, "of": 1})
    if node.kind == "report":
        (out / "report.html").write_text("a page")
    plan = Path(context.run_folder) / "trouble" / node.name
    if plan.exists():
        trouble(plan.read_text())
    (out / "threads").write_text(str(context.threads))
    (out / "times").write_text(f"{began} {time.time()}")

def trouble(kind):
    if kind == "user":
        raise UserError("the liver is missing")
    if kind == "bug":
        raise KeyError("oops")
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "weights")
    if kind == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "slow":
        time.sleep(0.3)
    if kind == "stuck":
        time.sleep(600)
"""


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "steps"
    folder.mkdir()
    (folder / "toy_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "toy_steps", raising=False)
    return importlib.import_module("toy_steps").note


def config(*overrides: str) -> RunConfig:
    return parse(yamlfile.parse(RUN, "run.yaml").override(overrides))


def trouble(tmp_path: Path, node: str, kind: str) -> None:
    folder = tmp_path / "toy" / "trouble"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / node).write_text(kind)


def no_trouble(tmp_path: Path) -> None:
    for file in (tmp_path / "toy" / "trouble").iterdir():
        file.unlink()


def go(tmp_path: Path, step: Any, *overrides: str, **options: Any) -> tuple[Finished, list[Any]]:
    events: list[Any] = []
    finished = run(config(*overrides), runs=tmp_path, progress=events.append, step=step, key="data", **options)
    return finished, events


def names(nodes: Any) -> list[str]:
    return [node.name for node in nodes]


def test_a_run_does_every_node_once(tmp_path: Path, step: Any) -> None:
    first, events = go(tmp_path, step)
    assert sorted(names(first.outcome.done)) == sorted(names(first.graph.nodes))
    assert first.outcome.reused == []
    states = [(e["node"], e["state"]) for e in events if "state" in e]
    for node in first.graph.nodes:
        assert [state for name, state in states if name == node.name] == ["waiting", "started", "done"]
        assert {"node": node.name, "step": 1, "of": 1} in events
    assert first.report is not None
    assert first.report.read_text() == "a page"
    assert (first.folder / "config.yaml").read_text() == config().to_yaml()
    second, events = go(tmp_path, step)
    assert second.outcome.done == []
    assert names(second.outcome.reused) == names(first.graph.nodes)
    assert {e["state"] for e in events} == {"reused"}
    assert second.report == first.report


def test_a_manifest_tells_where_a_node_comes_from(tmp_path: Path, step: Any) -> None:
    finished, _ = go(tmp_path, step)
    node = next(node for node in finished.graph.nodes if node.kind == "targets")
    manifest = read_manifest(finished.node_folder(node))
    assert manifest is not None
    assert manifest.key == finished.graph.keys[node]
    assert manifest.node["kind"] == "targets"
    assert manifest.inputs == {one.name: finished.graph.keys[one] for one in finished.graph.dependencies[node]}
    assert manifest.config["fold"] == 0
    assert manifest.versions["torch"]
    assert manifest.timings["seconds"] >= 0


def test_a_change_redoes_only_what_depends_on_it(tmp_path: Path, step: Any) -> None:
    go(tmp_path, step)
    finished, _ = go(tmp_path, step, "report.title=Toy")
    assert names(finished.outcome.done) == ["report"]
    finished, _ = go(tmp_path, step, "stages.student.train.steps=7")
    assert {node.kind for node in finished.outcome.done} == {"train", "evaluate", "cost", "export", "report"}
    assert {node.stage for node in finished.outcome.done} == {"student", ""}
    # And back: the nodes of the first run are still there.
    assert go(tmp_path, step)[0].outcome.done == []


def test_only_a_stage(tmp_path: Path, step: Any) -> None:
    finished, _ = go(tmp_path, step, only="teachers")
    assert {node.stage for node in finished.outcome.done} == {"teachers", ""}
    assert finished.report is None
    with pytest.raises(UserError, match="did you mean 'teachers'"):
        go(tmp_path, step, only="teacher")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_node_keeps_only_its_dependants_back(tmp_path: Path, step: Any, jobs: int) -> None:
    trouble(tmp_path, "train.teachers.m0.f0.s0.main", "user")
    outcome = go(tmp_path, step, jobs=jobs)[0].outcome
    assert {node.name: failure.message for node, failure in outcome.failed.items()} == {
        "train.teachers.m0.f0.s0.main": "the liver is missing"
    }
    assert "train.student.m0.f0.s0.main" in names(outcome.skipped)
    assert "report" in names(outcome.skipped)
    assert {"train.teachers.m1.f0.s0.main", "train.student.m0.f0.s0.control"} <= {*names(outcome.done)}
    assert {node.name for node in outcome.skipped.values()} == {"train.teachers.m0.f0.s0.main"}
    no_trouble(tmp_path)
    again = go(tmp_path, step, jobs=jobs)[0].outcome
    assert set(names(again.done)) == {*names(outcome.failed), *names(outcome.skipped)}


@pytest.mark.parametrize(
    ("kind", "said", "ours"),
    [
        ("bug", "KeyError: 'oops'; the traceback is in ", True),
        ("full", "weights cannot be written: the disk is full", False),
        ("memory", "memory ran out; lower train.batch", False),
    ],
)
def test_a_failure_is_told_in_one_sentence(tmp_path: Path, step: Any, kind: str, said: str, ours: bool) -> None:
    trouble(tmp_path, "prepare", kind)
    finished, _ = go(tmp_path, step)
    (failure,) = finished.outcome.failed.values()
    assert failure.message.startswith(said)
    assert (failure.trace is not None) == ours
    (left,) = (finished.folder / "nodes").iterdir()
    assert left.name.endswith(".partial")
    assert (left / "error.txt").exists() == ours


def test_a_deleted_intermediate_is_made_again_only_when_needed(tmp_path: Path, step: Any) -> None:
    finished, _ = go(tmp_path, step)
    targets = next(node for node in finished.graph.nodes if node.kind == "targets")
    for file in finished.node_folder(targets).iterdir():
        file.unlink()
    finished.node_folder(targets).rmdir()
    assert go(tmp_path, step)[0].outcome.done == []
    again, _ = go(tmp_path, step, "stages.student.train.steps=7")
    assert "targets.teachers.f0" in names(again.outcome.done)


def test_an_interrupted_run_keeps_what_is_whole(tmp_path: Path, step: Any) -> None:
    trouble(tmp_path, "train.teachers.m1.f0.s0.main", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, step)
    no_trouble(tmp_path)
    finished, _ = go(tmp_path, step)
    assert names(finished.outcome.reused) == ["prepare", "train.teachers.m0.f0.s0.main"]


def graph_and_context(tmp_path: Path, *overrides: str) -> tuple[Graph, Context]:
    run_config = config(*overrides)
    return build_graph(run_config, "data"), Context(run_config, tmp_path / "toy")


def times(tmp_path: Path, name: str) -> tuple[float, float]:
    (file,) = (tmp_path / "toy" / "nodes").glob(f"{name}-*/times")
    began, ended = file.read_text().split()
    return float(began), float(ended)


def test_workers_run_beside_each_other_and_costs_alone(tmp_path: Path, step: Any) -> None:
    graph, context = graph_and_context(tmp_path)
    for node in graph.nodes:
        trouble(tmp_path, node.name, "slow")
    outcome = execute(graph, graph.nodes, context, jobs=2, step=step)
    assert set(outcome.done) == set(graph.nodes)
    spans = {node: times(tmp_path, node.name) for node in graph.nodes}

    def overlap(name: str) -> list[str]:
        ((began, ended),) = (span for node, span in spans.items() if node.name == name)
        return [n.name for n, (b, e) in spans.items() if n.name != name and b < ended and e > began]

    assert overlap("train.teachers.m0.f0.s0.main") != []
    assert overlap("cost.student") == []
    assert overlap("cost.teachers") == []
    for node in graph.nodes:
        assert all(spans[one][1] <= spans[node][0] for one in graph.dependencies[node])


@pytest.mark.parametrize("jobs", [1, 2])
def test_threads_are_shared_out(tmp_path: Path, step: Any, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    go(tmp_path, step, "stages.student.train.threads=5", jobs=jobs)
    given = {f.parent.name.split("-")[0]: int(f.read_text()) for f in (tmp_path / "toy" / "nodes").glob("*/threads")}
    assert given["train.student.m0.f0.s0.main"] == 5
    assert given["train.teachers.m0.f0.s0.main"] == 6 // jobs
    assert given["evaluate.student.f0.s0.main"] == 6 // jobs
    assert given["cost.student"] == 6


def test_a_killed_worker_fails_its_node_and_is_replaced(tmp_path: Path, step: Any) -> None:
    trouble(tmp_path, "train.teachers.m0.f0.s0.main", "killed")
    outcome: Outcome = go(tmp_path, step, jobs=2)[0].outcome
    (failure,) = outcome.failed.values()
    assert failure.node.name == "train.teachers.m0.f0.s0.main"
    assert "killed, most likely for memory" in failure.message
    assert "train.student.m0.f0.s0.control" in names(outcome.done)


def test_a_bug_in_a_worker_comes_with_its_traceback(tmp_path: Path, step: Any) -> None:
    trouble(tmp_path, "train.teachers.m0.f0.s0.main", "bug")
    outcome = go(tmp_path, step, jobs=2)[0].outcome
    (failure,) = outcome.failed.values()
    assert failure.trace is not None
    assert "toy_steps.py" in failure.trace


def test_unfinished_looks_at_folders_only(tmp_path: Path, step: Any) -> None:
    graph, context = graph_and_context(tmp_path)
    nodes = tmp_path / "toy" / "nodes"
    assert unfinished(graph, graph.nodes, nodes) == set(graph.nodes)
    execute(graph, graph.of_stage("teachers"), context, step=step)
    left = unfinished(graph, graph.nodes, nodes)
    assert {node.stage for node in left} == {"student", "teachers", ""}
    assert sorted(node.kind for node in left if node.stage == "teachers") == ["answers", "targets"]


PROGRAM = """\
import sys
from pathlib import Path
if __name__ == "__main__":
    from medkd.pipeline import yamlfile
    from medkd.pipeline.config import parse
    from medkd.pipeline.run import run
    import toy_steps
    config = parse(yamlfile.parse(Path("run.yaml").read_text(), "run.yaml"))
    print("ready", flush=True)
    try:
        run(config, runs=Path("."), jobs=2, step=toy_steps.note, key="data")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, step: Any, how: signal.Signals) -> None:
    trouble(tmp_path, "train.teachers.m0.f0.s0.main", "stuck")
    trouble(tmp_path, "train.teachers.m1.f0.s0.main", "stuck")
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "steps")}
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_for(lambda: len(list((tmp_path / "toy" / "nodes").glob("train*.partial"))) >= 2)
        # As a terminal does it: every process of the group gets the signal.
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        code = process.wait(timeout=30)
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
        wait_for(lambda: not group_lives(process.pid))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    # Nothing holds the folder, and what was whole is reused.
    no_trouble(tmp_path)
    assert names(go(tmp_path, step)[0].outcome.reused) == ["prepare"]


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
