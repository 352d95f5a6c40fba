"""Passwords and keys of storages: each lies in a file of its own that only root reads, never in ``storage.cfg``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pvetools.system import files, paths
from pvetools.system.errors import PveError


class _Place(NamedTuple):
    """File below ``/etc/pve/priv`` and its content, by the storage's id and the secret."""

    file: str
    form: str = "{secret}"


# A type has a row of its own where its tools want another form of the file than others.
_PLACES: dict[tuple[str, str], _Place] = {
    ("", "password"): _Place("storage/{id}.pw"),
    ("", "encryption-key"): _Place("storage/{id}.enc"),
    ("", "master-pubkey"): _Place("storage/{id}.master.pem"),
    ("", "keyring"): _Place("ceph/{id}.keyring", "{secret}\n"),
    ("cephfs", "keyring"): _Place("ceph/{id}.secret", "{secret}\n"),
    ("cifs", "password"): _Place("storage/{id}.pw", "password={secret}\n"),
}


def _place(type_: str, option: str) -> _Place:
    return _PLACES.get((type_, option)) or _PLACES.get(("", option)) or _Place(f"storage/{{id}}.{option}")


def path(storage: str, type_: str, option: str) -> Path:
    """The file of a secret; it need not exist."""
    return paths.etc_pve() / "priv" / _place(type_, option).file.format(id=storage)


def write(storage: str, type_: str, given: Mapping[str, str]) -> None:
    """Keep secrets, by option.

    Raises:
        PveError: a password with a line break, which the tools that read it would take for its end.
    """
    for option, secret in given.items():
        if option == "password" and any(sign in secret for sign in "\n\r\0"):
            raise PveError(f"the password of storage '{storage}' must not contain line breaks")
        place = path(storage, type_, option)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(place, _place(type_, option).form.format(secret=secret.rstrip("\n")), mode=0o600)


def read(storage: str, type_: str, option: str) -> str | None:
    """A secret as it was given; None: there is none."""
    text = files.read_text(path(storage, type_, option))
    if text is None:
        return None
    before = _place(type_, option).form.partition("{secret}")[0]
    return text.strip("\n").removeprefix(before)


def remove(storage: str, type_: str, options: Iterable[str]) -> None:
    """Forget secrets; those that were never given are no error."""
    for option in options:
        files.remove(path(storage, type_, option))


def change(storage: str, type_: str, given: Mapping[str, str], gone: Iterable[str], undo: contextlib.ExitStack) -> None:
    """Keep new secrets and forget others; what is undone brings the old ones back.

    Raises:
        PveError: as ``write``.
    """
    gone = set(gone)
    for option in [*given, *gone]:
        place = path(storage, type_, option)
        undo.callback(_put_back, place, files.read_text(place))
    write(storage, type_, given)
    remove(storage, type_, gone)


def _put_back(place: Path, text: str | None) -> None:
    if text is None:
        files.remove(place)
    else:
        files.write_atomic(place, text, mode=0o600)
