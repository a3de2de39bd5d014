"""A teacher's answer, computed once a case over the whole volume and stored for every student that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.store import Volumes, class_positions, read_positions, write_positions

Array = NDArray[Any]


class TargetStore:
    """Teacher probabilities ``(K, *S)`` float16 by case, on the grid of the prepared volumes.

    Args:
        folder: where the targets are.
        ram_mb: decoded targets that may stay in memory, in MB.
    """

    def __init__(self, folder: Path, *, ram_mb: float = 1024.0) -> None:
        self.volumes = Volumes(folder, ram_mb=ram_mb)
        self._positions: dict[str, dict[int, Array]] = {}

    def has(self, case: str) -> bool:
        """Return whether the case is stored whole; positions are written last."""
        return (self.volumes.folder / f"{case}.target.npz").is_file()

    def write(self, case: str, probabilities: Array) -> None:
        """Store ``(K, *S)`` probabilities and the positions of the classes that win somewhere."""
        self.volumes.write(case, "target", probabilities.astype(np.float16))
        positions = class_positions(probabilities.argmax(0))
        write_positions(self.volumes.folder / f"{case}.target.npz", positions)

    def read(self, case: str) -> Any:
        """Return the probabilities of a case, sliceable."""
        return self.volumes.read(case, "target")

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions ``(n, dims)`` by foreground class that the teacher sees."""
        if case not in self._positions:
            self._positions[case] = read_positions(self.volumes.folder / f"{case}.target.npz")
        return self._positions[case]
