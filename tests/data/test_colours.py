"""Colours and tables of classes, as viewers read them."""

from __future__ import annotations

import re

from medkd.data.colours import itksnap_table, label_colours, slicer_table

LABELS = {"background": 0, "left kidney": 1, "right kidney": 2, "liver": 3, 'odd "name"\n': 4}


def test_every_class_has_its_own_colour() -> None:
    labels = {"background": 0, **{f"kidney {i}": i for i in range(1, 9)}, **{f"organ_{i}": i for i in range(9, 119)}}
    colours = label_colours(labels)
    assert list(colours) == list(labels)
    assert len(set(colours.values())) == len(labels)
    assert colours["background"] == (0, 0, 0)
    assert all(0 <= channel <= 255 for colour in colours.values() for channel in colour)


def test_a_known_organ_keeps_its_colour() -> None:
    assert label_colours({"liver": 1})["liver"] == label_colours({"spleen": 1, "Liver": 7})["Liver"]


def test_itksnap_reads_it() -> None:
    lines = itksnap_table(LABELS).splitlines()
    # Index, three colours, opacity, visible, mesh, name in quotes; '#' starts a comment.
    pattern = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"$')
    rows = [pattern.match(line) for line in lines if not line.startswith("#")]
    assert all(rows)
    assert [(row[1], row[5], row[8]) for row in rows if row] == [
        ("0", "0", "background"),
        ("1", "1", "left kidney"),
        ("2", "1", "right kidney"),
        ("3", "1", "liver"),
        ("4", "1", "odd 'name'"),
    ]


def test_slicer_reads_it() -> None:
    rows = [line.split() for line in slicer_table(LABELS).splitlines() if not line.startswith("#")]
    assert [len(row) for row in rows] == [6] * 5
    assert rows[1][:2] == ["1", "left_kidney"]
    assert rows[0][2:] == ["0", "0", "0", "0"]
    assert rows[1][5] == "255"
