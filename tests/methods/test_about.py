from __future__ import annotations

from typing import ClassVar

from medkd.methods.about import about, example_of, kind_of, taken_apart
from medkd.methods.base import Method

TEXT = """Do it.

.. math:: L = 1

Args:
    a: first.
    b: second, see Reads: below.

Shapes: logits ``(B, K)``.
Reads: logits. Learns: an adapter, whose
    parts are two. Teacher: one.
Reference: after A, B, *A Title: With Colon*, MICCAI 2019, arXiv:2001.12345, eq. 1.
"""


def test_a_docstring_is_taken_apart() -> None:
    head, parts = taken_apart(TEXT)
    assert head == "Do it.\n\n.. math:: L = 1"
    assert list(parts) == ["Args", "Shapes", "Reads", "Learns", "Teacher", "Reference"]
    assert parts["Learns"].split() == ["an", "adapter,", "whose", "parts", "are", "two."]
    assert parts["Args"] == "a: first.\nb: second, see Reads: below."


def test_what_is_told_of_a_method() -> None:
    kd, dkd, supervised = about("kd"), about("dkd"), about("supervised")
    assert (kd.kind, kd.reads, kd.cacheable, kd.confidence) == ("logits", ("logits",), True, "of")
    assert kd.paper == "Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network"
    assert (kd.year, kd.arxiv) == (2014, "1503.02531"), "the year of the paper, not digits of its number"
    assert kd.arguments["temperature"] == 2.0
    assert dkd.reads == ("logits", "labels")
    assert (supervised.kind, supervised.teacher, supervised.cacheable) == ("task", False, False)
    assert about("boundary").confidence == "after"


class Inventor(Method):
    """Invents."""

    example: ClassVar[dict[str, object]] = {"latent": 2}

    def __init__(self, *, patch: tuple[int, ...], channels: int = 1, latent: int = 64) -> None:
        super().__init__()
        self.patch, self.channels, self.latent = patch, channels, latent


def test_examples_fit_a_tiny_network() -> None:
    assert example_of(Inventor, (8, 4), 6) == {"latent": 2, "patch": (8, 4), "channels": 6}
    assert kind_of(Inventor) == "own"
