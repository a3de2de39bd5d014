"""NiiVue for the page: an optional file, looked for on this machine and fetched only when asked.

The page's own viewer needs nothing. NiiVue (BSD-2-Clause, https://niivue.com) adds the rendering in three
dimensions; it is not part of medkd, and writing a report never asks the network for it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from medkd.errors import UserError

VERSION = "0.69.0"
ADDRESS = f"https://registry.npmjs.org/@niivue/niivue/-/niivue-{VERSION}.tgz"
INTEGRITY = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""SHA-512 of the package, as the registry publishes it."""
DIGEST = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""SHA-256 of the one file of the package that goes into the page."""
MEMBER = "package/dist/niivue.umd.js"
VARIABLE = "MEDKD_NIIVUE"
TIMEOUT_S = 30.0
LARGEST_BYTES = 100 << 20


def find_niivue() -> str | None:
    """Return NiiVue's source from the file that ``MEDKD_NIIVUE`` names, or from the cache; None where it is absent.

    ``MEDKD_NIIVUE`` may name a file of another version (``dist/niivue.umd.js`` of the npm package); an empty value
    leaves NiiVue out. The file in the cache is used only if it is the one that was checked.

    Raises:
        UserError: the file that ``MEDKD_NIIVUE`` names cannot be read.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        if not named:
            return None
        try:
            return Path(named).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{VARIABLE} names {named}, which cannot be read: "
                "give dist/niivue.umd.js of the npm package, or unset the variable"
            ) from error
    try:
        body = cached_file().read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: an account without a home folder
        return None
    return body.decode("utf-8") if hashlib.sha256(body).hexdigest() == DIGEST else None


def cached_file() -> Path:
    """Return where the fetched file lies: ``$XDG_CACHE_HOME/medkd``, by default ``~/.cache/medkd``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "medkd" / f"niivue-{VERSION}.umd.js"


def fetch_niivue(address: str = ADDRESS) -> Path:
    """Download the pinned package, check it against its published SHA-512 and keep the one file that is needed.

    Args:
        address: of the package; a mirror of the npm registry serves the same bytes.

    Returns:
        The file, which :func:`find_niivue` finds from now on.

    Raises:
        UserError: no connection, other bytes than expected, or the cache cannot be written.
    """
    path = cached_file()
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == DIGEST:
        return path
    if not address.startswith("https://"):
        raise UserError(f"NiiVue is fetched by https only, not from {address}")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:  # noqa: S310 https, checked above
            package = answer.read(LARGEST_BYTES)
    except (OSError, HTTPException, urllib.error.URLError) as error:
        raise UserError(
            f"NiiVue cannot be fetched from {address} ({error}): on a machine with a connection, take {MEMBER} "
            f"out of that package, copy it here and set {VARIABLE} to it"
        ) from error
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != INTEGRITY:
        raise UserError(f"what came from {address} is not NiiVue {VERSION} as it was published: it was thrown away")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None  # the checked package has it
        body = member.read()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(f"NiiVue cannot be kept in {path.parent}: {error.strerror}") from error
    return path
