"""A made-up abdomen as implicit surfaces: where each tissue of one patient lies.

Lengths are mm. Positions are RAS with the origin in the middle of the second lumbar vertebra's level, so the liver
lies at positive x and the head at positive z. Sizes and places are rough textbook values for an adult; no person's
scan was used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medkd.data.phantom_space import Field, Space, blend

ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "aorta", "vertebrae", "stomach")


class Layer(NamedTuple):
    """One tissue painted over what lies behind it.

    Args:
        tissue: key of a table of intensities.
        occupancy: ``(X, Y, Z)`` share of each voxel, in [0, 1].
        organ: the label it gets where it fills most of a voxel; ``""`` removes the label; None leaves it.
    """

    tissue: str
    occupancy: Field
    organ: str | None = None


def abdomen(space: Space, *, fat_mm: float) -> Iterator[Layer]:
    """Yield the tissues of one patient from the back of the painting to the front.

    Args:
        space: voxel positions and random numbers.
        fat_mm: thickness of the fat under the skin, thinner at the back.
    """
    s, rng = space, space.rng
    skin, wall = _trunk(s, fat_mm)
    lung, below = _lungs(s, wall)
    cavity = wall + rng.uniform(11, 15)  # the inner side of the muscles
    yield Layer("skin", s.fill(skin))
    yield Layer("fat", s.fill(skin + 2.5))
    yield Layer("muscle", s.fill(wall))
    yield Layer("fat", s.fill(cavity))
    yield from _back(s, wall)
    yield from _bowel(s, cavity)
    yield Layer("muscle", s.fill(np.maximum(np.abs(below + 1) - 2.5, cavity)))
    yield Layer("lung", s.fill(lung))
    yield Layer("heart", s.fill(np.maximum(s.ellipsoid(s.jitter((-22, 32, 112), 4), (52, 42, 34)), -below - 2)))
    inside = np.maximum(cavity + 1, below + 4)
    yield from _upper_organs(s, inside)
    yield from _kidneys(s, inside)
    yield from _vessels(s)
    yield from _bones(s, wall)


def _trunk(s: Space, fat_mm: float) -> tuple[Field, Field]:
    """Return the distances to the skin and to the outer side of the muscles."""
    waist = 1 - 0.05 * np.exp(-(((s.z + 40) / 45) ** 2)) + s.rng.normal(0, 0.015)
    semi = np.array([s.rng.normal(126, 5), s.rng.normal(88, 4)]) + 0.1 * fat_mm

    def ring(extra: Field | float, shift: float) -> Field:
        u = np.abs(s.x) / (semi[0] * waist + extra)
        v = np.abs(s.y - shift) / (semi[1] * waist + extra)
        radius = (u**2.4 + v**2.4) ** (1 / 2.4)
        return np.asarray((radius - 1) * (semi.mean() + 10), np.float32)

    dent = s.wobble(1.5, (4, 4, 4)) + 7 * np.exp(-((s.x / 26) ** 2)) * (s.y < 0)  # the furrow along the spine
    return ring(fat_mm, 0.3 * fat_mm) + dent, ring(0, 0) + 0.7 * dent


def _lungs(s: Space, wall: Field) -> tuple[Field, Field]:
    """Return the distance to the lungs, and to the diaphragm (negative below it)."""
    height = s.rng.normal(86, 9)
    dome = [
        height + drop - 16 * reach - 14 * reach**2  # flat on top and steep towards the ribs
        for cx, drop in ((60, 0.0), (-62, s.rng.normal(-10, 4)))
        for reach in [((s.x - cx) / 58) ** 2 + ((s.y - 10) / 78) ** 2]
    ]
    below = ((s.z - np.maximum(*dome) + s.wobble(2)) * 0.8).astype(np.float32)
    middle = blend(s.ellipsoid((-8, 26, 120), (46, 50, 300)), s.ellipsoid((-3, -34, 120), (32, 34, 300)), 20)
    free = -(middle + s.wobble(2.5, (9, 8, 5)))  # the lungs leave room for heart, vessels and spine
    return np.maximum(np.maximum(wall + 15, -below + 3), free), below


def _back(s: Space, wall: Field) -> Iterator[Layer]:
    for side in (-1, 1):
        erector = s.ellipsoid(s.jitter((side * 34, -66, 0), 2), (27, 19, 400))
        yield Layer("muscle", s.fill(np.maximum(erector, wall + 2)))
        flank = s.ellipsoid(s.jitter((side * 62, -60, -75), 2), (22, 11, 72), (0, 0, side * 25))
        yield Layer("muscle", s.fill(flank))
        psoas = [(side * 22, -40, 40), (side * 34, -32, -30), (side * 46, -18, -130)]
        yield Layer("muscle", s.fill(s.tube(psoas, (5, 15, 22)) + s.wobble(1)))


def _bowel(s: Space, cavity: Field) -> Iterator[Layer]:
    room = np.maximum(np.maximum(cavity + 4, s.z - 12 + 0.35 * s.y + s.wobble(8)), -(s.y + 8))
    loops = s.wobble(9, (20, 16, 18))
    small = np.maximum(room, np.abs(loops) - 7.5)
    yield Layer("bowel", s.fill(small))
    yield Layer("fluid", s.fill(np.maximum(small + 4, s.wobble(5, (8, 7, 8)))))
    yield Layer("gas", s.fill(np.maximum(small + 4, 7 - s.wobble(5, (12, 10, 11)) - 0.03 * s.y)))
    for side, top in ((1, 0), (-1, 25)):
        path = [s.jitter((side * 96, y, z), 4) for y, z in ((-8, -150), (-4, -90), (-12, -40), (2, top))]
        tube = np.maximum(s.tube(path, s.rng.uniform(15, 23, 4).tolist()) + s.wobble(3, (10, 9, 12)), cavity + 1)
        yield Layer("bowel", s.fill(tube))
        yield Layer("stool", s.fill(tube + 4))
        yield Layer("gas", s.fill(np.maximum(tube + 4, 3 + s.wobble(5, (6, 6, 9)) - 0.2 * (s.y + 5))))


def _upper_organs(s: Space, inside: Field) -> Iterator[Layer]:
    rng = s.rng
    pancreas = [s.jitter(p, 3) for p in ((34, 14, -14), (14, 24, -4), (-22, 14, 8), (-62, -8, 24))]
    yield Layer("pancreas", s.fill(s.tube(pancreas, (13, 10, 9, 7)) + s.wobble(2, (12, 10, 12))))

    size = rng.normal(1, 0.07)
    right = s.ellipsoid(s.jitter((62, 6, 20), 5), size * np.array([66, 82, 84]), rng.normal(0, 7, 3))
    left = s.ellipsoid(s.jitter((0, 46, 46), 6), (rng.uniform(52, 78), 34, 30), (0, rng.normal(-8, 6), -10))
    liver = blend(right, left, 16) + s.wobble(3.5)
    hollow = s.ellipsoid((14, -20, -46), (44, 50, 50))  # room for kidney, bowel and pancreas under the liver
    liver = np.maximum(np.maximum(liver, inside), -hollow)
    stomach = blend(
        s.ellipsoid(s.jitter((-56, 12, 44), 5), (rng.uniform(28, 40), 38, 36), (0, 0, 20)),
        s.tube([s.jitter((-54, 30, 20), 5), s.jitter((-30, 48, -14), 6), (14, 40, -8)], (26, 19, 13)),
        14,
    )
    stomach = np.maximum(stomach + s.wobble(2.5), inside)
    spleen = s.ellipsoid(s.jitter((-88, -36, 40), 4), rng.normal(1, 0.08) * np.array([35, 52, 56]), (12, 8, 28))
    dent = s.ellipsoid(s.jitter((-40, 0, 40), 4), (34, 48, 60))
    spleen = np.maximum(np.maximum(spleen + s.wobble(2.5), inside), -dent)

    yield Layer("stomach", s.fill(stomach), "stomach")
    yield Layer("meal", s.fill(stomach + 5))
    level = 52 - s.y + 0.1 * s.wobble(10)  # gas rises to the front of a patient who lies on the back
    yield Layer("gas", s.fill(np.maximum(stomach + 5, level + rng.uniform(-12, 14))))
    yield Layer("spleen", s.fill(spleen), "spleen")
    yield Layer("liver", s.fill(liver), "liver")
    for path in _tree(s):
        yield Layer("portal", s.fill(np.maximum(s.tube(path, (6.5, 5, 3)), liver + 6)))
    gall = s.ellipsoid(s.jitter((40, 38, -22), 5), (13, rng.uniform(18, 30), 15), (25, 0, 0))
    if rng.random() < 0.8:
        yield Layer("fluid", s.fill(gall), "")


def _tree(s: Space) -> list[list[NDArray[np.float64]]]:
    """Return the portal and hepatic veins in the liver as short chains of points."""
    hilum = s.jitter((32, 8, 4), 4)
    ends = [(95, -25, 20), (92, 35, 30), (80, -5, 62), (20, 50, 38), (-22, 52, 40)]
    paths = [[hilum, s.jitter(np.add(hilum, end) / 2, 6), s.jitter(end, 8)] for end in ends]
    cava = s.jitter((22, -8, 72), 3)
    return paths + [[cava, s.jitter(np.add(cava, end) / 2, 6), s.jitter(end, 8)] for end in ((90, 0, 42), (45, 48, 52))]


def _kidneys(s: Space, inside: Field) -> Iterator[Layer]:
    for side, name, height in ((-1, "kidney_left", 2), (1, "kidney_right", -14)):
        centre = s.jitter((side * 60, -40, height), 5)
        semi = s.rng.normal(1, 0.08) * np.array([27, 24, 53])
        turn = (s.rng.normal(10, 4), side * s.rng.normal(12, 4), side * s.rng.normal(-25, 6))
        pad = s.ellipsoid(centre, semi + s.rng.uniform(5, 11), turn)
        kidney = s.ellipsoid(centre, semi, turn) + s.wobble(1.8)
        hilum = s.ellipsoid(centre + np.array([-side * 19, 5, 0]), (15, 10, 24), turn) + s.wobble(1.5)
        yield Layer("fat", s.fill(np.maximum(pad, inside + 2)), "")
        yield Layer("cortex", s.fill(kidney), name)
        yield Layer("medulla", s.fill(np.maximum(kidney + 8, s.wobble(5, (18, 15, 12)) - 2)))
        yield Layer("sinus", s.fill(hilum), "")
        if s.rng.random() < 0.25:
            cyst = s.ellipsoid(centre + semi * s.rng.choice([-0.8, 0.8], 3) * [1, 0.3, 0.7], [s.rng.uniform(6, 13)] * 3)
            yield Layer("fluid", s.fill(cyst), "")


def _vessels(s: Space) -> Iterator[Layer]:
    sway = s.rng.normal(0, 4, 4)
    aorta = [(-13 + dx, -9 + dy, z) for dx, dy, z in zip(sway, sway[::-1] / 2, (150, 60, -30, -96), strict=True)]
    cava = [(18 + dx, -6 + dy, z) for dx, dy, z in zip(-sway / 2, sway / 2, (150, 60, -30, -96), strict=True)]
    girth = s.rng.normal(10.5, 1.2)
    yield Layer("vein", s.fill(s.tube(cava, (13, 12, 11, 11)) + s.wobble(1)))
    yield Layer("vein", s.fill(s.tube([cava[3], (30, -2, -170)], (10, 9))))
    yield Layer("vein", s.fill(s.tube([(14, -2, 2), (-14, 6, -2), (-42, -24, 2)], (5, 5, 5))))
    tree = np.minimum(
        s.tube(aorta, [girth * f for f in (1.1, 1.05, 1, 0.9)]) + s.wobble(0.6),
        np.minimum(*(s.tube([aorta[3], (dx, 2, -175)], (0.75 * girth, 6)) for dx in (-32, 12))),
    )
    yield Layer("blood", s.fill(tree), "aorta")
    branch = s.tube([(-12, 0, 26), (-8, 22, 20), (8, 26, 14)], (4, 4, 3))
    yield Layer("blood", s.fill(np.maximum(branch, -tree)))
    for _ in range(int(s.rng.integers(0, 4))):
        plaque = s.ellipsoid(s.jitter((-13, -14, s.rng.uniform(-90, 60)), 4), (3, 3, 6))
        yield Layer("bone", s.fill(np.maximum(plaque, np.abs(tree) - 2)))


def _bones(s: Space, wall: Field) -> Iterator[Layer]:
    rng = s.rng
    pitch, shift = rng.normal(35, 1.5), rng.uniform(-17, 17)
    level = np.mod(s.z + shift + 0.12 * (s.y + 38) + pitch / 2, pitch) - pitch / 2  # end plates lean a little
    bow = -38 + 4 * np.cos(s.z / 60)
    flat = np.abs(level) - (pitch / 2 - 4.5)
    column = (np.sqrt((s.x / 22.5) ** 2 + ((s.y - bow) / 16.5) ** 2) - 1) * 18 + 1.5 * np.cos(level / 6)
    canal = np.hypot(s.x, s.y - bow + 24) - 8.5
    arch = np.maximum(np.abs(canal - 3.5) - 4.5, np.abs(level + 2) - 11)
    spine = np.maximum(np.hypot(s.x * 1.9, (s.y - bow + 44) / 2.2) - 7, np.abs(level + 8) - 8)
    wings = np.hypot(np.hypot((s.y - bow + 22) / 1, (level + 1) / 1.2), np.maximum(np.abs(s.x) - 34, 0)) - 5
    wings = np.maximum(wings, 12 - np.abs(s.x))
    bone = np.minimum(np.maximum(column, flat), np.minimum(arch, np.minimum(spine, wings))) + s.wobble(0.7)
    yield Layer("disc", s.fill(column + 1))
    yield Layer("bone", s.fill(bone), "vertebrae")
    yield Layer("marrow", s.fill(np.maximum(np.maximum(column, flat) + 3, -canal)))
    yield Layer("cord", s.fill(canal), "")
    yield from _ribs(s, wall)


def _ribs(s: Space, wall: Field) -> Iterator[Layer]:
    # Around the trunk from the spine (0) to the front (1); ribs run down along it and the lowest ones end early.
    around = np.arctan2(np.abs(s.x) / 1.4, -(s.y + 12)) / np.pi
    pitch, lowest = s.rng.normal(30, 1.5), s.rng.uniform(-2, 14)
    along = s.z - lowest + 150 * np.clip(around - 0.08, 0, None)
    number = np.floor(along / pitch + 0.5)
    off = along - number * pitch
    end = 0.36 + 0.12 * number
    rib = np.hypot((wall + 7) / 0.8, off * 0.85) - 3.8
    rib = np.maximum(rib, np.maximum((around - end) * 200, (0.1 - around) * 200))
    rib = np.where(number < 0, np.float32(50), rib).astype(np.float32)
    yield Layer("bone", s.fill(rib))
    yield Layer("marrow", s.fill(rib + 3))
