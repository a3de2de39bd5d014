"""What of a bundle's configuration would run as code of its author, found without running it.

MONAI evaluates strings that begin with ``$`` and calls whatever ``_target_`` names, so a configuration is a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medkd.errors import UserError
from medkd.teachers.sources import TRUST

_REFERENCE = re.compile(r"@([\w.:#]+)")
_MODULES = re.compile(r"^monai\.(networks\.(nets|blocks|layers)|transforms)\.[\w.]+$")


def refuse_code(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> None:
    """Search parts of a configuration, and all that they refer to.

    Args:
        config: the whole configuration.
        keys: the parts that will be resolved.
        path: its file, for the message.

    Raises:
        UserError: an expression, a macro, or a class that is neither a network nor a transform of MONAI.
    """
    for place, what in _reached(config, keys, set()):
        raise UserError(
            f"{path}: {place} is {what!r}, which runs as code when it is read; if you know where the bundle comes "
            f"from, set `{TRUST}`"
        )


def _reached(config: Mapping[str, Any], keys: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, str]]:
    for key in keys:
        if key in seen or key not in config:
            continue
        seen.add(key)
        for place, name, value in _leaves(config[key], key):
            if not isinstance(value, str):
                continue
            # A macro (%) copies the text of another place, even of another file.
            if value.startswith(("$", "%")) or (name == "_target_" and not _harmless(value)):
                yield place, value
            # Relative references climb (@##name): whatever segment names a part, that part is searched.
            parts = (part for found in _REFERENCE.findall(value) for part in re.split(r"[:#.]+", found))
            yield from _reached(config, tuple(parts), seen)


def _harmless(target: str) -> bool:
    """Tell whether a class is a network or a transform of MONAI, by full or by bare name."""
    if "." in target:
        return _MODULES.match(target) is not None
    import monai.networks.nets as nets
    import monai.transforms as transforms

    return isinstance(getattr(nets, target, None) or getattr(transforms, target, None), type)


def _leaves(value: Any, place: str, name: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}", str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}.{index}", name)
    else:
        yield place, name, value
