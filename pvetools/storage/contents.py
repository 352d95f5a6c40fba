"""What may be brought onto a storage from outside: names by content type, and checks of the files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import images, names, ova
from pvetools.system import files
from pvetools.system.compress import BY_EXTENSION
from pvetools.system.errors import ParamErrors, PveError, Refused

_TAR_MAGIC = (257, b"ustar")


class _Content(NamedTuple):
    """A content type that can be brought in: its names, in a pattern and in words, and the check of its files."""

    names: re.Pattern[str]
    endings: str
    check: Callable[[Path, str], None]


def file_name(content: str, wanted: str) -> str:
    """The name a file will have: without folders, unusual characters replaced, with an ending that fits.

    Raises:
        ParamErrors: another ending, or a hidden file.
    """
    name = re.sub(r"[^a-zA-Z0-9_.-]", "_", re.split(r"[/\\]", wanted.rstrip("\n"))[-1])
    kind = _CONTENTS[content]
    if not kind.names.fullmatch(name) or name.startswith("."):
        raise ParamErrors({"filename": f"'{name}' is no name for content type '{content}', expected {kind.endings}"})
    return name


def check(path: Path, content: str, name: str) -> None:
    """Refuse a file that is not what its name says, or that would read other files of the host.

    Raises:
        PveError.
    """
    if not path.stat().st_size:
        raise PveError(f"'{name}' is empty")
    try:
        _CONTENTS[content].check(path, name)
    except PveError as error:
        kind = Refused if isinstance(error, Refused) else PveError
        raise kind(str(error).replace(str(path), name)) from None  # by its name, not by that of the temporary file


def _check_disc(path: Path, name: str) -> None:
    """A disc or a disk image, which some people call ``.img`` whatever its format is."""
    form = images.format_of(path)
    if form != "raw":
        images.check_foreign(path, form)


def _check_template(path: Path, name: str) -> None:
    codec = BY_EXTENSION.get(name.rpartition(".")[2].lower())
    offset, magics = (0, codec.magic) if codec else (_TAR_MAGIC[0], (_TAR_MAGIC[1],))
    with files.open_regular(path) as file:
        head = file.read(512)[offset:]
    if not head.startswith(magics):
        raise PveError(f"'{name}' does not hold what its name says")


def _check_image(path: Path, name: str) -> None:
    form = name.rpartition(".")[2]
    if form == "ova":
        ova.check(path)
    elif form == "raw":
        if (real := images.format_of(path)) != "raw":
            raise Refused(f"'{name}' is an image of format {real}")
    else:
        images.check_foreign(path, form)


_CONTENTS = {
    "iso": _Content(names.ISO, "NAME.iso or NAME.img", _check_disc),
    "vztmpl": _Content(names.TEMPLATE, "NAME.tar, NAME.tar.gz, .xz, .zst or .bz2", _check_template),
    "import": _Content(
        re.compile(r"[a-zA-Z0-9\-.+=_]+\.(ova|qcow2|raw|vmdk)"), "NAME.ova, .qcow2, .raw or .vmdk", _check_image
    ),
}
