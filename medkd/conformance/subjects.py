"""What can be judged: a method of the catalogue, a :class:`Method` of one's own, or any ``(student, teacher)`` loss."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, final

from torch import nn

from medkd.conformance.play import Subject
from medkd.conformance.toys import CHANNELS
from medkd.errors import UserError, nearest
from medkd.methods import catalogue
from medkd.methods.about import example_of
from medkd.methods.base import Method
from medkd.types import Batch, Terms, View

LABELS = ("label", "labels", "target_label", "y")
"""Names of an argument by which a plain loss is given the labels ``(B, *S)``."""


@final
class PlainLoss(Method):
    """A plain loss in the place of a method; its modules learn, as an adapter would.

    Args:
        loss: takes the logits of student and teacher, ``(B, K, *S)`` each, and the labels where it names them.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.loss = loss
        named = [name for name in _parameters(loss) if name in LABELS]
        self.label = named[0] if named else None

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        more = {} if self.label is None else {self.label: batch.label}
        value = self.loss(student.logits, teacher.logits, **more)
        return value if isinstance(value, dict) else {"loss": value}


def plain(name: str, make: Callable[[], Callable[..., Any]]) -> Subject:
    """Return a plain loss to be judged; ``make`` returns it anew."""
    return Subject(name, lambda _: PlainLoss(make()), logits_only=True)


def method(name: str, found: type[Method], arguments: Mapping[str, Any] | None = None) -> Subject:
    """Return a method to be judged, with its example arguments unless others are given.

    Methods of the kind ``multi_teacher`` have two teachers at the table, those of ``online`` a peer.
    """
    kind = found.__module__.split(".")[-2:][0]

    def make(size: tuple[int, ...]) -> Method:
        return found(**(example_of(found, size, 2 * CHANNELS) if arguments is None else arguments))

    return Subject(name, make, teachers=2 if kind == "multi_teacher" else 1, peers=1 if kind == "online" else 0)


def find(name: str, arguments: Mapping[str, Any] | None = None) -> Subject:
    """Return what ``name`` stands for: a catalogue name, ``module:name`` or ``file.py:name``.

    The named thing is a :class:`Method`, a class of a loss (called with ``arguments``), or the loss itself: a function
    ``(student_logits, teacher_logits) -> scalar``, with the labels too where a parameter is called ``label``.

    Raises:
        UserError: there is no such thing, it is no loss, or it refuses the arguments.
    """
    if name in catalogue.CATALOGUE:
        return method(name, catalogue.load(name), arguments or None)
    place, colon, attribute = name.rpartition(":")
    if not colon:
        known = nearest(name, catalogue.CATALOGUE)
        raise UserError(f"{name!r} is no method of the catalogue{known}; for a loss of your own give module:function")
    found = getattr(_module(place), attribute, None)
    if found is None:
        raise UserError(f"{place} has no {attribute!r}{nearest(attribute, vars(_module(place)))}")
    if inspect.isclass(found) and issubclass(found, Method):
        subject = method(name, found, arguments or None)
    elif inspect.isclass(found):
        made: Callable[..., Any] = partial(found, **(arguments or {}))
        subject = plain(name, lambda: made())
    elif callable(found):
        loss: Callable[..., Any] = partial(found, **arguments) if arguments else found
        subject = plain(name, lambda: loss)
    else:
        raise UserError(f"{name} is a {type(found).__name__}; give a function or a class of a loss")
    try:
        subject.fresh()
    except TypeError as error:
        raise UserError(f"{name} cannot be made: {error}; give arguments with --with key=value") from error
    return subject


def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UserError(f"{place}: no such file; give file.py:function or module:function")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise UserError(f"{place} cannot be imported ({error}); give module:function or file.py:function") from error


def _parameters(loss: Callable[..., Any]) -> list[str]:
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        return list(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return []
