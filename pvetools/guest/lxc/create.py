"""Making containers from templates."""

from __future__ import annotations

import ctypes
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pvetools.config.guest import GuestConfig
from pvetools.guest.common import create as common
from pvetools.guest.lxc import hosting, idmap, kind, mounts, ociimage, unpack
from pvetools.guest.lxc.idmap import IdMap
from pvetools.guest.lxc.setup import family
from pvetools.guest.lxc.tree import GuestTree
from pvetools.options.lxc import LxcOptions, Rootfs
from pvetools.system import log
from pvetools.system.errors import NotFound, ParamErrors, PveError

Fill = Callable[[Path, IdMap], None]
DEFAULT_SIZE = "4"  # GiB of a root that nobody gave a size
_KEY = re.compile(r"(?:\S.*\s)?(?:ssh|ecdsa|sk)-[\w@.-]+\s+[A-Za-z0-9+/]+=*(?:\s.*)?", re.ASCII)
_SALT = string.ascii_letters + string.digits + "./"


class Access(NamedTuple):
    """How root gets into a new container: a password (clear text) and public SSH keys."""

    password: str = ""
    ssh_keys: Sequence[str] = ()


def create(
    vmid: int,
    options: LxcOptions,
    fill: Fill,
    *,
    storage: str = "local",
    raw: list[tuple[str, str]] | None = None,
    access: Access | None = None,
    usual: Mapping[str, str] | None = None,
) -> GuestConfig:
    """Make a container and fill its root; nothing stays when that fails.

    Args:
        vmid: an unused id.
        options: its options; ``rootfs`` may ask for a new volume (``STORAGE:GIB``).
        fill: unpacks into the mounted tree (mount points included) as the container's root, by the id map.
        storage: where the root goes when ``rootfs`` is not given.
        raw: raw ``lxc.*`` lines.
        access: write the guest's own files with that; None leaves them as they were unpacked (restore).
        usual: options that the template asks for, where they are not given.

    Raises:
        Exists: the id is in use. ParamErrors: options that do not fit together. PveError: what failed.
    """
    rootfs = options.rootfs or Rootfs(volume=f"{storage}:{DEFAULT_SIZE}")
    given = {row.attr: vars(options)[row.attr] for row in LxcOptions.FIELDS.values() if row.attr in vars(options)}
    given["net"] = kind.with_addresses(options.net, {})
    given.pop("rootfs", None)
    wanted = LxcOptions(rootfs=rootfs, **given)  # the root is made first
    defaults = {"hostname": f"CT{vmid}", "unprivileged": "1", **(usual or {})} if access is not None else {}
    section = {**defaults, **wanted.texts()}
    idmap.check_host(idmap.of(section, raw or ()))
    mounts.check_reachable(vmid, idmap.of(section, raw or ()))
    hashed = hash_password(access.password) if access and access.password else ""

    def populate(draft: GuestConfig, undo: ExitStack) -> None:
        undo.callback(hosting.forget, vmid)
        ids = idmap.of(draft.current, draft.lxc)
        with mounts.mounted(vmid, hosting.options(vmid, draft.current), ids, writable=True) as root:
            fill(root, ids)
            if access is None:
                return
            _find_out(draft, root, ids)
            current = hosting.options(vmid, draft.current)
            hosting.personalise(root, current, ids, hashed, access.ssh_keys)

    return common.create(kind.LXC, vmid, wanted, defaults=defaults, lxc=raw, populate=populate)


def _find_out(draft: GuestConfig, root: Path, ids: IdMap) -> None:
    """Write down distribution and architecture of the new tree, where the user did not say."""
    with GuestTree(root, ids) as tree:
        arch = family.architecture(tree)
        if "arch" not in draft.current:
            draft.current["arch"] = arch or "amd64"
        if "ostype" not in draft.current:
            draft.current["ostype"] = family.detect(tree)
            if draft.current["ostype"] == "unmanaged":
                if arch is None and "entrypoint" not in draft.current:
                    raise PveError("the template holds no root file system: neither a known distribution nor a shell")
                log.warn("no known distribution in the template: its files are left alone (ostype: unmanaged)")


def from_template(ostemplate: str, *, ignore_errors: bool = False) -> Fill:
    """The function that unpacks a template.

    Args:
        ostemplate: volume id of content ``vztmpl``, or an absolute path.
        ignore_errors: go on when single members cannot be unpacked.

    Raises:
        ParamErrors: not a template. NotFound: it is not there. PveError: not a tar archive.
    """
    archive = _archive(ostemplate)
    unpacker = ociimage.unpack if _is_image(archive) else unpack.unpack

    def fill(root: Path, ids: IdMap) -> None:
        log.emit(f"extracting '{archive.name}'")
        unpacker(archive, root, ids, ignore_errors=ignore_errors)

    return fill


def _is_image(archive: Path) -> bool:
    return unpack.compression(archive) == "" and ociimage.is_image(archive)


def image_options(ostemplate: str, given: Collection[str] = ()) -> dict[str, str]:
    """Options that a template asks for itself: program and environment of an image from an OCI registry.

    Args:
        ostemplate: as ``from_template``.
        given: options that the user has given, which count more.

    Raises:
        As ``from_template``.
    """
    archive = _archive(ostemplate)
    return ociimage.options(archive, given) if _is_image(archive) else {}


def _archive(ostemplate: str) -> Path:
    if ostemplate.startswith("/"):
        path = Path(ostemplate)
    else:
        from pvetools.storage import volumes

        found = volumes.parse(ostemplate)
        if found.content != "vztmpl":
            raise ParamErrors({"ostemplate": f"volume '{ostemplate}' is of content type '{found.content}', not vztmpl"})
        volumes.usable(ostemplate.partition(":")[0], "vztmpl")
        path = volumes.path(ostemplate)
    if not path.is_file():
        raise NotFound(f"template '{ostemplate}' does not exist")
    return path


def ssh_keys(text: str) -> list[str]:
    """The keys in the text of an ``authorized_keys`` or ``.pub`` file; the text may be URL-encoded as a whole.

    Raises:
        ParamErrors: a line that is no key.
    """
    from urllib.parse import unquote

    if "%20" in text and " " not in text:
        text = unquote(text)
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ParamErrors({"ssh-public-keys": f"'{key[:40]}' is not a public SSH key"})
    return keys


def hash_password(password: str) -> str:
    """SHA-512 hash of a password, as shadow files hold it; by the system's own library, so it is in no command line.

    Raises:
        PveError: the library cannot do it.
    """
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype, crypt.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_char_p]
    salt = "$6$" + "".join(secrets.choice(_SALT) for _ in range(16))
    hashed: bytes | None = crypt(password.encode(), salt.encode())
    if not hashed or not hashed.startswith(b"$6$"):
        raise PveError("the password cannot be hashed: libcrypt does not know SHA-512")
    return hashed.decode("ascii")
