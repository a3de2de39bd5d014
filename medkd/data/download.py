"""Public datasets by name, from where MONAI keeps the Medical Segmentation Decathlon."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from medkd.errors import UserError, nearest

BLOCK = 1 << 20
TIMEOUT_S = 60.0


def available() -> dict[str, tuple[str, str]]:
    """Return name -> (address, MD5) of every dataset that :func:`download` knows, from MONAI's own table."""
    from monai.apps.datasets import DecathlonDataset  # seconds to import, so only when asked for

    return {f"msd/{task}": (url, DecathlonDataset.md5[task]) for task, url in DecathlonDataset.resource.items()}


def download(name: str, into: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a dataset, check its MD5 and unpack it; what is already there is not fetched again.

    A transfer that breaks off leaves ``<task>.tar.part``, and the next call goes on from there.

    Args:
        name: such as ``msd/Task04_Hippocampus``; the case of letters does not matter.
        into: folder that will hold the task's folder.
        progress: called with bytes done and bytes in all (0 when the server does not tell).

    Returns:
        The folder with ``dataset.json``.

    Raises:
        UserError: unknown name, no connection, full disk, damaged archive.
    """
    known = available()
    names = {key.lower(): key for key in known}
    key = names.get(name.lower()) or names.get(f"msd/{name}".lower())
    if key is None:
        raise UserError(f"no dataset {name!r} to download{nearest(name, known)}: known are {', '.join(known)}")
    url, md5 = known[key]
    task = key.split("/")[1]
    folder = Path(into) / task
    if (folder / "dataset.json").is_file():
        return folder
    if folder.exists():
        raise UserError(f"{folder} is there but has no dataset.json: remove it, or choose another folder")
    archive = folder.with_name(f"{task}.tar")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if not archive.is_file():
            _fetch(url, archive, progress)
        _check(archive, md5)
        _unpack(archive, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): free disk space or choose another folder") from error
    archive.unlink()
    return folder


def _fetch(url: str, archive: Path, progress: Callable[[int, int], None] | None) -> None:
    part = archive.with_name(archive.name + ".part")
    done, total = (part.stat().st_size if part.exists() else 0), 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310 (MONAI's table)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            if answer.status != 206:  # the server begins anew
                done = 0
            total = done + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if done else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total if total >= done else 0)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part already holds every byte
            told = f"{error.code} {error.reason}"
            raise UserError(
                f"{url} answers {told}: try again later, or unpack it by hand in {archive.parent}"
            ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} cannot be reached ({reason}): check the connection and run it again, "
            f"or unpack a copy of {archive.name} in {archive.parent}"
        ) from error
    if done < total:
        raise UserError(
            f"the connection to {url} broke off after {done} of {total} bytes: run it again to go on from there"
        )
    part.replace(archive)


def _check(archive: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != md5:
        raise UserError(f"{archive} is damaged (MD5 {digest.hexdigest()}, not {md5}): delete it and run it again")


def _unpack(archive: Path, folder: Path) -> None:
    # Into a folder of its own, renamed last: a half-unpacked dataset must never look like one.
    room = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(room, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(room, filter="data")  # refuses what would land outside
        found = sorted(room.glob("dataset.json")) or sorted(room.glob("*/dataset.json"))
        if not found:
            raise UserError(f"{archive} holds no dataset.json: it is not a dataset in the layout of the MSD")
        found[0].parent.replace(folder)
    except tarfile.TarError as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): delete it and run it again") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
