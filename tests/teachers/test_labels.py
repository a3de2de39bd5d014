from __future__ import annotations

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.teachers.labels import Ontology, renumber

LABELS = {"background": 0, "Brainstem": 1, "LeftParotid": 2, "RightParotid": 3}


def test_spelling_and_other_names_find_the_class() -> None:
    union = Ontology.of(LABELS, {"left_parotid": ["parotid_L", "Glandula parotis sin."]})
    for word in ("LeftParotid", "left parotid", "LEFT-PAROTID", "parotid L", "glandula_parotis_sin"):
        assert union.name(word, "x") == "LeftParotid"


def test_an_unknown_name_is_refused_with_the_nearest_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"teacher a names the class 'brainstm'.*did you mean 'Brainstem'.*ontology"):
        Ontology.of(LABELS).name("brainstm", "teacher a")


def test_classes_that_only_the_ontology_names_join_the_union() -> None:
    union = Ontology.of(LABELS, {"Larynx": ["voice box"], "Brainstem": ["stem"]})
    assert union.names == ("background", "Brainstem", "LeftParotid", "RightParotid", "Larynx")
    assert union.name("Voice Box", "x") == "Larynx"


def test_classes_of_others_may_be_background_here() -> None:
    union = Ontology.of(LABELS, {"background": ["spleen", "rib_*"]})
    theirs = {"background": 0, "Spleen": 1, "brainstem": 2, "rib_left_4": 3}
    assert union.channels(theirs, "teacher t") == (None, "Brainstem", None)
    with pytest.raises(UserError, match="liver"):
        union.channels({"background": 0, "liver": 1}, "teacher t")
    with pytest.raises(UserError, match="means background"):
        union.part(["spleen"], "stage a")


def test_a_part_is_renumbered_in_the_order_of_the_union() -> None:
    union = Ontology.of(LABELS)
    part = union.part(["right parotid", "Brainstem"], "stage a")
    assert part == {"background": 0, "Brainstem": 1, "RightParotid": 2}
    assert renumber(LABELS, part).tolist() == [0, 1, 0, 2]
    assert union.knows(part).tolist() == [True, True, False, True]
    assert union.part([], "stage a") == {"background": 0}
    with pytest.raises(UserError, match="twice"):
        union.part(["Brainstem", "brain stem"], "stage a")


@pytest.mark.parametrize(
    ("aliases", "says"),
    [
        ({"Brainstem": ["x"], "LeftParotid": ["X"]}, "both Brainstem and LeftParotid"),
        ({"Brainstem": ["left parotid"]}, "both LeftParotid and Brainstem"),
        ({"Brainstem": "stem"}, "must be a list"),
    ],
)
def test_a_name_means_one_class(aliases: dict[str, list[str]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Ontology.of(LABELS, aliases)


def test_labels_without_background_or_with_a_gap_are_refused() -> None:
    assert Ontology.of({"air": 0, "b": 1}, {"background": ["c"]}).channels({"x": 0, "c": 1, "B": 2}, "t") == (None, "b")
    with pytest.raises(UserError, match="1, 2 and so on"):
        Ontology({"background": 0, "b": 2}, {})
    with pytest.raises(UserError, match="0, 1, 2"):
        Ontology.of(LABELS).channels({"background": 0, "Brainstem": 4}, "teacher")


def test_renumber_keeps_the_dtype_that_indexes() -> None:
    table = renumber(LABELS, {"background": 0, "LeftParotid": 1})
    assert table[np.array([[2, 0], [3, 1]])].tolist() == [[1, 0], [0, 0]]
