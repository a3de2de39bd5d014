"""The rules: each a sentence, and a function that raises where it does not hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from medkd.conformance.measures import EXACT, finite, half, learns, near, noise_like, same, set_up, student_terms
from medkd.conformance.play import BrokenRuleError, MootRuleError, Subject, play
from medkd.conformance.toys import STUDENT, TEACHER, doubled, mirrored, scene, transposed
from medkd.methods.about import kind_of
from medkd.types import IGNORE

HALF = 4
"""Voxels along the first axis that a rule takes out: whole cells of the bottleneck's grid."""


def two_d(subject: Subject) -> None:
    """2-D: finite scalar terms, and a gradient for the student."""
    learns(finite(play(subject, scene((8, 12)))))


def three_d(subject: Subject) -> None:
    """3-D: finite scalar terms, and a gradient for the student."""
    learns(finite(play(subject, scene())))


def odd_sizes(subject: Subject) -> None:
    """Odd patch sizes, in 2-D and 3-D."""
    learns(finite(play(subject, scene((11, 7)))))
    learns(finite(play(subject, scene((9, 7, 11)))))


def classes(subject: Subject) -> None:
    """2, 3 and 118 classes."""
    for number in (2, 3, 118):
        try:
            finite(play(subject, scene(classes=number), classes=number))
        except BrokenRuleError as error:
            raise BrokenRuleError(f"{number} classes: {error}") from error


def student_learns(subject: Subject) -> None:
    """The gradient reaches the student."""
    learns(play(subject, scene()))


def adapters_learn(subject: Subject) -> None:
    """The gradient reaches every parameter of the loss itself."""
    turns = play(subject, scene()).of("student")
    names = {name for turn in turns for name in turn.own}
    if not names:
        raise MootRuleError("it has no parameters of its own")
    dead = [n for n in sorted(names) if not any(turn.own.get(n) is not None for turn in turns)]
    if dead:
        raise BrokenRuleError(f"no gradient for {', '.join(dead)}")


def teacher_rests(subject: Subject) -> None:
    """No gradient goes to the teacher."""
    for turn in play(subject, scene()).turns:
        if turn.teacher > 0:
            raise BrokenRuleError(f"the teacher gets a gradient in the turn of {turn.player}")


def least_at_teacher(subject: Subject) -> None:
    """Zero, or least, where the student shows what the teacher shows."""
    zero = subject.fresh().zero_at_teacher
    if not (zero or subject.logits_only):
        raise MootRuleError("not declared")
    batch = scene()
    image = batch.image.clone()
    image[:, STUDENT] = image[:, TEACHER]
    here, away = play(subject, replace(batch, image=image), twin=True).total, play(subject, batch).total
    if zero and abs(here) > EXACT * max(1e-3, abs(away)):
        raise BrokenRuleError(f"{here:.3g} at the teacher, where it should be 0 (elsewhere {away:.3g})")
    if not here < away:
        raise BrokenRuleError(f"{here:.3g} at the teacher and {away:.3g} away from it")
    if subject.logits_only and here < -EXACT * abs(away):
        raise BrokenRuleError(f"negative at the teacher, {here:.3g}: a divergence of what is not normalised")


def bf16(subject: Subject) -> None:
    """bf16 inputs give the number of the same inputs in float32."""
    half(subject, torch.bfloat16)


def fp16(subject: Subject) -> None:
    """fp16 inputs give the number of the same inputs in float32."""
    half(subject, torch.float16)


def one_class(subject: Subject) -> None:
    """A patch of one class is finite."""
    batch = scene()
    image = batch.image.clone()
    image[:, TEACHER] = 1.0
    finite(play(subject, replace(batch, image=image, label=torch.zeros_like(batch.label))))


def absent_class(subject: Subject) -> None:
    """A class that is nowhere in the patch does no harm."""
    batch = scene(classes=5)
    learns(finite(play(subject, replace(batch, label=batch.label % 2), classes=5)))


def batch_of_one(subject: Subject) -> None:
    """Batch 1 is finite and teaches, or is refused by ``min_batch``."""
    least = subject.fresh().min_batch
    if least > 1:
        raise MootRuleError(f"asks for a batch of {least}")
    learns(finite(play(subject, scene(batch=1))))


def patch_size(subject: Subject) -> None:
    """A patch continued by its mirror image gives the same number."""
    same(subject, mirrored, "four times the voxels")


def batch_size(subject: Subject) -> None:
    """A batch in which every sample is there twice gives the same number."""
    same(subject, doubled, "twice the batch")


def axes(subject: Subject) -> None:
    """No spatial axis is special: exchanging two of them leaves the number."""
    same(subject, transposed, "two axes exchanged")


def every_sample(subject: Subject) -> None:
    """Every sample of the batch teaches."""
    played = play(subject, scene(batch=3))
    reached = [g.flatten(1).abs().amax(1) for turn in played.of("student") for g in turn.shown]
    if not reached:
        if any(turn.network for turn in played.of("student")):
            raise MootRuleError("it trains on images of its own")
        raise BrokenRuleError("no sample has a gradient")
    silent = [i for i, best in enumerate(torch.stack(reached).amax(0)) if not best > 0]
    if silent:
        raise BrokenRuleError(f"sample {', '.join(map(str, silent))} of 3 has no gradient")


def same_seed(subject: Subject) -> None:
    """The same seed gives the same number."""
    near(play(subject, scene(), seed=3).terms, play(subject, scene(), seed=3).terms, 1e-6, "with one seed")


def state(subject: Subject) -> None:
    """What it remembers survives ``state_dict``: a restored copy goes on with the same numbers."""
    first = play(subject, scene(seed=1), rounds=3).method
    fresh = play(subject, scene(seed=2), rounds=1).method
    fresh.load_state_dict(copy.deepcopy(first.state_dict()))
    after = [play(subject, scene(seed=3), rounds=2, seed=7, method=method).terms for method in (first, fresh)]
    near(after[0], after[1], 1e-5, "after saving and loading")


def trust(subject: Subject) -> None:
    """What the teacher shows where trust is 0 does not matter."""
    if subject.logits_only:
        raise MootRuleError("it is not told")
    if not subject.fresh().reads_teacher:
        raise MootRuleError("it reads no teacher")
    batch = scene()
    weight = torch.ones_like(batch.image[:, :1])
    weight[:, :, :HALF] = 0
    image = batch.image.clone()
    image[:, TEACHER, :HALF] = noise_like(image[:, TEACHER, :HALF])
    before, after = (play(subject, replace(batch, image=x, trust=weight)) for x in (batch.image, image))
    near(student_terms(finite(before)), student_terms(finite(after)), EXACT, "with another teacher where trust is 0")


def ignore(subject: Subject) -> None:
    """A voxel whose label is unknown and whose teacher is not trusted does not matter; nor do unlabelled cases."""
    batch = scene()
    finite(play(subject, replace(batch, label=torch.full_like(batch.label, IGNORE))))
    method = set_up(subject)
    learns_from_itself = kind_of(type(method)) in ("self_distillation", "online")
    if subject.logits_only or method.taps() or method.players() or learns_from_itself:
        return
    label, weight, image = batch.label.clone(), torch.ones_like(batch.image[:, :1]), batch.image.clone()
    label[:, :HALF], weight[:, :, :HALF] = IGNORE, 0
    image[:, :, :HALF] = noise_like(image[:, :, :HALF])
    unknown = replace(batch, label=label, trust=weight)
    before, after = play(subject, unknown), play(subject, replace(unknown, image=image))
    near(student_terms(before), student_terms(after), EXACT, "with other voxels where nothing is known")


def known(subject: Subject) -> None:
    """A class that teacher or label do not know: only its sum with the background matters, and gets a gradient."""
    one = subject.fresh()
    if subject.logits_only:
        raise MootRuleError("it is not told")
    if not (one.reads_teacher or one.reads_labels):
        raise MootRuleError("it reads neither teacher nor labels")
    number = 5  # as many channels as no tap has
    batch = scene(classes=number)
    batch = replace(batch, label=batch.label % (number - 1))
    all_known = torch.ones(len(batch.image), number, dtype=torch.bool)
    told, untold = (
        play(subject, one, classes=number) for one in (replace(batch, known=all_known, target_known=all_known), batch)
    )
    near(untold.terms, told.terms, 0.0, "with every class known, as before", 0.0)
    some = all_known.clone()
    some[:, -1] = False
    partial = replace(batch, known=some, target_known=some)

    def share(x: torch.Tensor) -> torch.Tensor:
        """Give the unknown class 70 percent of what it and the background have together."""
        if x.shape[1] != number:
            return x
        both = torch.logaddexp(x[:, :1], x[:, -1:])
        return torch.cat([both + math.log(0.3), x[:, 1:-1], both + math.log(0.7)], 1)

    before, after = (finite(play(subject, partial, classes=number, through=f)) for f in (lambda x: x, share))
    for name, value in before.terms.items():
        if abs(value) > 30 * max(abs(untold.terms[name]), 0.1):
            raise BrokenRuleError(
                f"{name} is {value:.3g} where a class is not known, {untold.terms[name]:.3g} where all are"
            )
    near(before.terms, after.terms, EXACT, "when an unknown class gains on the background")
    for turn in after.of("student"):
        for g in (g for g in turn.shown if g.shape[1] == number):
            apart = float((g[:, -1] * 0.3 - g[:, 0] * 0.7).abs().max())
            if apart > EXACT * max(1e-6, float(g.abs().max())):
                raise BrokenRuleError("an unknown class gets a gradient of its own")


def regions(subject: Subject) -> None:
    """Overlapping regions, where declared: finite, and the student learns."""
    if not subject.fresh().regions:
        raise MootRuleError("not declared")
    batch = scene()
    label = torch.stack([batch.label > 0, batch.label > 1, batch.label == 1], 1).long()
    label[:, :, :1] = IGNORE
    learns(finite(play(subject, replace(batch, label=label, regions=True))))


RULES: dict[str, Callable[[Subject], None]] = {
    "2d": two_d,
    "3d": three_d,
    "odd": odd_sizes,
    "classes": classes,
    "student": student_learns,
    "adapters": adapters_learn,
    "teacher": teacher_rests,
    "least": least_at_teacher,
    "bf16": bf16,
    "fp16": fp16,
    "one_class": one_class,
    "absent": absent_class,
    "batch_one": batch_of_one,
    "patch": patch_size,
    "batch": batch_size,
    "axes": axes,
    "samples": every_sample,
    "seed": same_seed,
    "state": state,
    "trust": trust,
    "ignore": ignore,
    "known": known,
    "regions": regions,
}
"""Every rule by its name, in the order of tables."""
