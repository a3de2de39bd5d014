"""Nodes of sibling runs are taken over by key, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.pipeline.folder import Manifest, finish, is_done, open_partial
from medkd.pipeline.graph import Graph
from medkd.pipeline.nodes import Node
from medkd.pipeline.reuse import adopt

TRAIN, COST = Node("train", "teachers", 0, 0, 0, "main"), Node("cost", "teachers")


@pytest.fixture
def graph() -> Graph:
    return Graph((TRAIN, COST), {TRAIN: (), COST: (TRAIN,)}, {TRAIN: "a" * 32, COST: "b" * 32}, {TRAIN: {}, COST: {}})


def make(folder: Path, key: str, text: str = "weights") -> None:
    out = open_partial(folder)
    (out / "sub").mkdir()
    (out / "sub" / "file").write_text(text)
    finish(folder, Manifest(key, {}))


def test_same_key_is_shared_by_link(tmp_path: Path, graph: Graph) -> None:
    other = graph.folder(TRAIN, tmp_path / "other" / "nodes")
    make(other, graph.keys[TRAIN])
    assert adopt(graph, graph.nodes, tmp_path / "mine") == [TRAIN]
    here = graph.folder(TRAIN, tmp_path / "mine" / "nodes")
    assert is_done(here, graph.keys[TRAIN])
    assert (here / "sub" / "file").samefile(other / "sub" / "file")
    assert adopt(graph, graph.nodes, tmp_path / "mine") == []  # it is there now


def test_another_key_or_a_half_node_is_left(tmp_path: Path, graph: Graph) -> None:
    make(graph.folder(TRAIN, tmp_path / "other" / "nodes"), "c" * 32)
    half = graph.folder(TRAIN, tmp_path / "third" / "nodes")
    half.mkdir(parents=True)
    (half / "file").write_text("half")
    assert adopt(graph, graph.nodes, tmp_path / "mine") == []
    assert not graph.folder(TRAIN, tmp_path / "mine" / "nodes").exists()


def test_costs_are_measured_anew(tmp_path: Path, graph: Graph) -> None:
    make(graph.folder(COST, tmp_path / "other" / "nodes"), graph.keys[COST])
    assert adopt(graph, graph.nodes, tmp_path / "mine") == []
