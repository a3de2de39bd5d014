"""Every method: one sorted line each, imported only when asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from medkd.errors import UserError, nearest
from medkd.methods.base import Method, Sum, Weight

CATALOGUE: dict[str, str] = {
    "adaptive_distillation": "weighting.adaptive_distillation:AdaptiveDistillation",
    "afd_attention_transfer": "features.afd_attention_transfer:AFDAttentionTransfer",
    "afd_online_adversarial": "online.afd_online_adversarial:AFDOnlineAdversarial",
    "at": "features.at:AT",
    "bgkd": "boundary.bgkd:BGKD",
    "boundary": "boundary.boundary:Boundary",
    "brats_kd_adv": "adversarial.brats_kd_adv:BratsKDAdv",
    "byot": "self_distillation.byot:BYOT",
    "cirkd": "relations.cirkd:CIRKD",
    "class_affinity": "relations.class_affinity:ClassAffinity",
    "crd": "relations.crd:CRD",
    "cwd": "logits.cwd:CWD",
    "deepinversion": "data_free.deepinversion:DeepInversion",
    "dist": "logits.dist:DIST",
    "dkd": "logits.dkd:DKD",
    "dml": "online.dml:DML",
    "emkd": "relations.emkd:EMKD",
    "fitnets": "features.fitnets:FitNets",
    "gid": "features.gid:GID",
    "idd": "relations.idd:IDD",
    "ifvd": "relations.ifvd:IFVD",
    "intra_kd": "relations.intra_kd:IntraKD",
    "kd": "logits.kd:KD",
    "meal": "multi_teacher.meal:MEAL",
    "mean_teacher": "self_distillation.mean_teacher:MeanTeacher",
    "mgd": "features.mgd:MGD",
    "nfd": "features.nfd:NFD",
    "noisy_teacher": "logits.noisy_teacher:NoisyTeacher",
    "okdph": "online.okdph:OKDPH",
    "reviewkd": "features.reviewkd:ReviewKD",
    "rkd": "relations.rkd:RKD",
    "robust_mtkd": "multi_teacher.robust_mtkd:RobustMTKD",
    "sasd": "features.sasd:SASD",
    "simkd": "features.simkd:SimKD",
    "skd": "adversarial.skd:SKD",
    "sp": "relations.sp:SP",
    "supervised": "supervised:Supervised",
    "zipf_ls": "self_distillation.zipf_ls:ZipfLS",
}


def load(name: str) -> type[Method]:
    """Return the class of a catalogue name, or of one's own ``package.module:Class``.

    Raises:
        UserError: unknown name, or not a :class:`Method`.
    """
    if name in CATALOGUE:
        module, _, attribute = CATALOGUE[name].partition(":")
        module = f"medkd.methods.{module}"
    elif ":" in name:
        module, _, attribute = name.partition(":")
    else:
        raise UserError(
            f"method {name!r} is not in the catalogue{nearest(name, CATALOGUE)}; known: {', '.join(CATALOGUE)}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"method {name!r} cannot be imported ({error}); give `package.module:Class`") from error
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise UserError(f"method {name!r} is not a subclass of medkd.methods.base.Method")
    return found


def make(name: str, arguments: Mapping[str, Any]) -> Method:
    """Return the method ``name`` with these constructor arguments.

    Raises:
        UserError: unknown method or argument, or a value that the method refuses.
    """
    found = load(name)
    known = [p for p in inspect.signature(found).parameters if p != "self"]
    for key in arguments:
        if key not in known:
            valid = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"method {name} has no argument {key!r}{nearest(key, known)}; {valid}")
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"method {name}: {error}") from error


def combine(specs: Iterable[tuple[str, str, Mapping[str, Any], Weight]]) -> Sum:
    """Return the sum of methods given as (alias, name, arguments, weight).

    Raises:
        UserError: two methods have one alias; whatever :func:`make` refuses.
    """
    methods: dict[str, tuple[Method, Weight]] = {}
    for alias, name, arguments, weight in specs:
        if alias in methods:
            raise UserError(f"two methods are called {alias!r}; give one of them another name with `as: ...`")
        methods[alias] = (make(name, arguments), weight)
    return Sum(methods)


def reads_teacher(name: str) -> bool:
    """Return whether the method needs a teacher."""
    return load(name).reads_teacher


def reads_nothing(name: str) -> bool:
    """Return whether the method learns from images alone: it needs neither labels nor a teacher."""
    found = load(name)
    return not (found.reads_labels or found.reads_teacher)


def cacheable(name: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether stored teacher probabilities are enough for the method: it reads no tap of the teacher."""
    method = make(name, arguments)
    return not method.needs_live_teacher and (not method.reads_teacher or not method.teacher_taps())
