"""A teacher's answer, computed once a case over the whole volume and stored for every student that needs it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.store import DamagedFileError, Volumes, class_positions, read_positions, write_positions
from medkd.errors import UserError
from medkd.teachers.encodings import Encoding, encode
from medkd.teachers.index import content_digest as content_digest
from medkd.teachers.index import describe, read_index, write_json
from medkd.teachers.views import Decoded, Trust

Array = NDArray[Any]
_PLACES = 20_000  # of all classes of a case together
Answer = Array | tuple[Array, Array | None]
"""Probabilities ``(K, *S)``, alone or with their trust ``(1, *S)`` in [0, 1]."""


class DamagedTargetError(DamagedFileError):
    """A stored target that is not what was written. :meth:`TargetStore.discard` the ``case`` and compute it again."""

    def __init__(self, folder: Path, case: str, why: str) -> None:
        super().__init__(
            f"the stored target of case {case} in {folder} is damaged ({why}); run the same command again, "
            "which computes this case anew"
        )
        self.folder, self.case = folder, case


class TargetStore:
    """Teacher probabilities by case, on the grid of the prepared volumes.

    A case is ``<case>.target.b2nd`` (its code), ``<case>.trust.b2nd`` where it has a trust, ``<case>.target.npz``
    (voxels of the classes that win) and, written last, ``<case>.target.json`` (their BLAKE2 digest). ``index.json``
    says how all cases are encoded, and from what. A folder without one holds float16, as medkd 0.1 wrote it.

    Args:
        folder: where the targets are.
        ram_mb: stored targets that may stay in memory, in MB; they stay encoded there.
        encoding: how new cases are stored; None for what the folder says, or ``full16`` in a new one.
        content: :func:`content_digest` of all that decides the answers; None to take
            the folder's.

    Raises:
        UserError: the folder holds targets of other teachers, or in another encoding.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ram_mb: float = 1024.0,
        encoding: Encoding | None = None,
        content: str | None = None,
    ) -> None:
        self.volumes = Volumes(folder, ram_mb=ram_mb)
        self._positions: dict[str, dict[int, Array]] = {}
        self._cards: dict[str, Mapping[str, Any]] = {}
        self._held: set[str] = set()
        some = next(folder.glob("*.target.npz"), None) is not None  # before the index, which is written before them
        index = read_index(folder)
        self._old = index is None and some
        stored = None if index is None else Encoding(index["encoding"], index["k"])
        if self._old:
            stored = Encoding("full16")
        self.encoding = encoding or stored or Encoding("full16")
        self.content = content if content is not None else (index or {}).get("content", "")
        if stored is not None and self.encoding != stored:
            raise UserError(
                f"{folder} holds {stored.name} targets and {self.encoding.name} is asked for; "
                "delete the folder or give another"
            )
        if index is not None and self.content != index["content"]:
            raise UserError(
                f"{folder} holds the answers of other teachers, or about other data; delete it or give another folder"
            )

    def __getstate__(self) -> dict[str, Any]:
        # what a worker process is sent: it trusts no file that it has not read itself
        return {**self.__dict__, "_cards": {}, "_held": set()}

    def has(self, case: str) -> bool:
        """Return whether the case is stored whole; what is in its files is looked at when they are read."""
        parts = ("target.npz",) if self._old else ("target.npz", "target.json")
        return all(self._path(case, part).is_file() for part in (*parts, "target.b2nd"))

    def write(self, case: str, probabilities: Array, trust: Array | None = None) -> None:
        """Store ``(K, *S)`` probabilities, their trust ``(1, *S)``, and positions of the classes that win somewhere.

        Raises:
            UserError: a probability is not finite, or the folder cannot be written.
        """
        code = encode(probabilities, self.encoding)
        with self.hold(case):
            self.discard(case)
            if not self._old:
                about = {"encoding": self.encoding.name, "k": self.encoding.k, "content": self.content}
                describe(self.volumes.folder, {**about, "classes": len(probabilities)})
            self.volumes.write(case, "target", code.planes, effort=5)
            if trust is not None:
                self.volumes.write(case, "trust", np.round(255 * np.clip(trust, 0, 1)).astype(np.uint8))
            write_positions(self._path(case, "target.npz"), _places(probabilities))
            if self._old:
                return
            card = {
                "classes": len(probabilities),
                "shape": list(probabilities.shape[1:]),
                "prior": None if code.prior is None else code.prior.tolist(),
                "trust": trust is not None,
            }
            digest, size = self._digest(case, card)
            write_json(self._path(case, "target.json"), {**card, "digest": digest, "bytes": size})

    def read(self, case: str) -> Any:
        """Return the probabilities of a case, ``(K, *S)``, decoded where they are sliced.

        The first read of a case in a process compares its files with their digest.

        Raises:
            UserError: the case is missing; :class:`DamagedTargetError` where its files are not what was written.
        """
        card = self._card(case)
        with self._damage(case):
            planes = self.volumes.read(case, "target")
        if self.encoding.name == "full16" and isinstance(planes, np.ndarray):
            return planes
        return Decoded(planes, card, self.encoding, partial(self._damage, case))

    def trust(self, case: str) -> Any:
        """Return how far the answer is trusted, ``(1, *S)`` in [0, 1], sliceable; None for wholly everywhere.

        Raises:
            UserError: as :meth:`read`.
        """
        if not self._card(case).get("trust", False):
            return None
        with self._damage(case):
            return Trust(self.volumes.read(case, "trust"), partial(self._damage, case))

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions ``(n, dims)`` by foreground class that the teacher sees."""
        if case not in self._positions:
            with self._damage(case):
                self._positions[case] = read_positions(self._path(case, "target.npz"))
        return self._positions[case]

    def verify(self, case: str) -> bool:
        """Return whether a case is stored and its files are what was written; reads every byte of it."""
        self._cards.pop(case, None)
        try:
            self._card(case)
            if self._old:  # no digest: decode all of it
                np.asarray(self.volumes.read(case, "target")[...])
                self.positions(case)
        except UserError:
            return False
        return True

    def discard(self, case: str) -> None:
        """Remove a case, so that it is computed again."""
        for part in ("target.json", "target.npz", "target.b2nd", "trust.b2nd"):  # what makes it whole goes first
            self._path(case, part).unlink(missing_ok=True)
        self._cards.pop(case, None)
        self._positions.pop(case, None)
        for kind in ("target", "trust"):
            self.volumes.forget(case, kind)

    def fill(
        self,
        cases: Sequence[str],
        answer: Callable[[str], Answer],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        """Compute the cases that are missing or damaged, side by side with other processes that fill this folder.

        Args:
            cases: those that must be there afterwards.
            answer: case -> its probabilities, or these and their trust.
            progress: told how many are there, of how many.

        Returns:
            How many were computed here.
        """
        left, done, computed = list(cases), 0, 0
        for wait in (False, True):  # first those that nobody else is at, then what became of the others
            busy = []
            for case in left:
                with self.hold(case, wait=wait) as mine:
                    if not mine:
                        busy.append(case)
                        continue
                    if not self.has(case) or not self.verify(case):
                        given = answer(case)
                        self.write(case, *(given if isinstance(given, tuple) else (given,)))
                        computed += 1
                done += 1
                progress(done, len(cases))
            left = busy
        return computed

    @contextmanager
    def hold(self, case: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a case against other processes; the hold ends with the process, however that ends.

        Yields:
            Whether the case is held: False only where another process has it and ``wait`` is false.
        """
        if case in self._held:
            yield True
            return
        path = self.volumes.folder / ".locks" / f"{case}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError as error:  # some network drives know no locks
                raise UserError(f"{path} cannot be locked ({error.strerror}); use a folder on a local disk") from error
            self._held.add(case)
            try:
                yield True
            finally:
                self._held.discard(case)

    def stored_bytes(self, cases: Sequence[str]) -> tuple[int, int]:
        """Return bytes on disk and voxels of those of the cases that are stored, for an estimate of the rest."""
        cards = [self._card(case) for case in cases if self.has(case) and not self._old]
        return sum(c["bytes"] for c in cards), sum(int(np.prod(c["shape"])) for c in cards)

    def _path(self, case: str, part: str) -> Path:
        return self.volumes.folder / f"{case}.{part}"

    def _card(self, case: str) -> Mapping[str, Any]:
        """Return what is written of a case, once its files have been compared with it."""
        if self._old:
            return {}
        if case not in self._cards:
            path = self._path(case, "target.json")
            if not path.is_file():
                raise UserError(f"{path} is missing; run the same command again, which computes this case")
            try:
                card = json.loads(path.read_text(encoding="utf-8"))
                found, _ = self._digest(case, {k: card[k] for k in ("classes", "shape", "prior", "trust")})
                told = card["digest"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DamagedTargetError(self.volumes.folder, case, str(error)) from error
            if found != told:
                raise DamagedTargetError(self.volumes.folder, case, "its digest is another")
            self._cards[case] = card
        return self._cards[case]

    def _digest(self, case: str, card: Mapping[str, Any]) -> tuple[str, int]:
        """Return the BLAKE2 digest of a case's card and files, and the files' bytes."""
        digest, size = hashlib.blake2b(json.dumps(card).encode(), digest_size=16), 0
        for part in ("target.b2nd", "target.npz", *(["trust.b2nd"] if card["trust"] else [])):
            with self._path(case, part).open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    size += len(block)
        return digest.hexdigest(), size

    @contextmanager
    def _damage(self, case: str) -> Iterator[None]:
        """Say of which case a damaged file is."""
        try:
            yield
        except DamagedTargetError:
            raise
        except DamagedFileError as error:
            raise DamagedTargetError(self.volumes.folder, case, str(error.__cause__ or error)) from error


def _places(probabilities: Array) -> dict[int, Array]:
    """Return where each class wins, in few bytes: sorted, and of many classes fewer voxels each."""
    found = class_positions(probabilities.argmax(0), max(100, min(2000, _PLACES // len(probabilities))))
    small = np.int16 if max(probabilities.shape) < 2**15 else np.int32
    return {value: where[np.lexsort(where.T[::-1])].astype(small) for value, where in found.items()}
