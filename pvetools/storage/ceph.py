"""Ceph clusters: how a storage's cluster is reached by Ceph's own tools, by QEMU and by mounts.

A cluster of this host is found by ``/etc/pve/ceph.conf`` or ``/etc/ceph/ceph.conf``, another one by the option
``monhost``. Keys lie in keyrings below ``/etc/pve/priv/ceph``; only their paths stand on command lines.
"""

from __future__ import annotations

import functools
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvetools.storage import san, secrets
from pvetools.storage.definition import Definition
from pvetools.storage.san import Portal, portal
from pvetools.system import paths, run
from pvetools.system.errors import PveError, RunError

ADMIN = "admin"
PORT, OLD_PORT = 3300, 6789
NOTHING = Path("/dev/null")  # as configuration of a cluster that is not this host's
CONNECT_WITHIN = 10  # seconds until a monitor must answer
COMMAND_WITHIN = 300.0
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]{0,127}", re.ASCII)
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\S+ +[0-9a-f]+ +-?\d+ +")
_MONITORS = re.compile(r"^\s*mon[ _]host\s*=\s*(.+)$", re.MULTILINE)
_BANNER = b"ceph v"
_SECTION = re.compile(r"\s*\[([^]]*)\]\s*")
_KEY = re.compile(r"\s*(?:key\s*=\s*)?([A-Za-z0-9+/]+={0,2})\s*", re.ASCII)
_FSID = re.compile(r"^\s*fsid\s*[=:]\s*([0-9a-f-]{36})\s*$", re.MULTILINE)


def check_name(storage: str, option: str, name: str) -> str:
    """Refuse names that could mean something else to the tools.

    Raises:
        PveError: an option's value is no name of a pool, a namespace, a user or a file system.
    """
    if not _NAME.fullmatch(name):
        raise PveError(f"storage '{storage}': {option} '{name}' is no valid name")
    return name


class Cluster(NamedTuple):
    """A storage's cluster.

    Args:
        storage: id of the storage.
        config: configuration file of Ceph's libraries.
        monitors: where the monitors are, unless the configuration says so.
        user: user name.
        keyring: file with the user's key; None: the configuration names it, or there is no authentication.
    """

    storage: str
    config: Path
    monitors: tuple[str, ...]
    user: str
    keyring: Path | None

    @property
    def portals(self) -> list[Portal]:
        """Where the monitors may listen, all with ports; libvirt knows no others."""
        return [place for text in self.monitors for place in _places(text)]

    @property
    def addresses(self) -> list[str]:
        """The monitors as Ceph writes them: IPv6 addresses in brackets, a port only where one was given."""
        return [_address(text) for text in self.monitors]

    @property
    def _unauthenticated(self) -> bool:
        return bool(self.monitors) and self.keyring is None

    def words(self) -> list[str]:
        """What every tool of Ceph is told about the cluster."""
        words = ["--conf", str(self.config), "--name", f"client.{self.user}"]
        words += ["-m", ",".join(self.addresses)] if self.monitors else []
        words += ["--keyring", str(self.keyring)] if self.keyring else []
        words += ["--auth_client_required", "none"] if self._unauthenticated else []
        return words

    def settings(self) -> Iterator[tuple[str, str]]:
        """The same as pairs, for QEMU's names of images."""
        yield "conf", str(self.config)
        yield "id", self.user
        if self.monitors:
            yield "mon_host", ";".join(self.addresses)
        if self.keyring:
            yield "keyring", str(self.keyring)
        if self._unauthenticated:
            yield "auth_client_required", "none"

    def run(self, tool: str, *words: str, check: bool = True, within: float | None = COMMAND_WITHIN) -> run.Completed:
        """Run ``ceph`` or ``rbd``, which gets ``within`` seconds for its work; None: it has to be done to its end.

        Raises:
            RunError: with the tool's reason, in one line. PveError: it took too long.
        """
        limit = "--connect-timeout" if tool == "ceph" else "--client_mount_timeout"
        argv = [tool, *self.words(), limit, str(CONNECT_WITHIN), *words]
        done = run.run(argv, check=False, timeout=within, whole=within is None)
        if check and done.code:
            raise RunError([tool, *words], done.code, reason(done.stderr or done.stdout))
        return done

    def fsid(self) -> str:
        """Id of the cluster, from the configuration or from the cluster, which is asked once."""
        return _fsid(self)


@functools.cache
def _fsid(found: Cluster) -> str:
    match = _FSID.search(found.config.read_text("utf-8", "replace")) if found.config.is_file() else None
    return match[1] if match else found.run("ceph", "fsid").stdout.strip()


def reach(found: Cluster) -> None:
    """Find out within seconds whether a monitor answers; nothing is asked where nobody says where they are.

    All are asked at once: a cluster is healthy without some of them.

    Raises:
        PveError: none answers.
    """
    places = [*dict.fromkeys(found.portals or _of_config(found.config))]
    answers: queue.SimpleQueue[tuple[Portal, str]] = queue.SimpleQueue()

    def ask(place: Portal) -> None:
        answers.put((place, _complaint(place)))

    for place in places:
        threading.Thread(target=ask, args=[place], daemon=True).start()
    told: dict[Portal, str] = {}
    while len(told) < len(places):
        place, complaint = answers.get()
        if not complaint:
            return  # nobody waits for the others
        told[place] = complaint
    if places:
        raise PveError(told[places[-1]])


def _complaint(place: Portal) -> str:
    """What is wrong with a monitor; empty when it answers."""
    try:
        with san.connect(place) as link:
            if link.recv(6) == _BANNER:
                return ""
    except OSError:
        return f"monitor '{place}' does not answer"
    except PveError as error:
        return str(error).replace("portal", "monitor")
    return f"what answers at '{place}' is no monitor of Ceph"


def _places(text: str) -> list[Portal]:
    """Where a monitor may listen: the ports of both versions of the protocol, unless one is given."""
    place = portal(text, 0)
    return [place] if place.port else [place._replace(port=port) for port in (PORT, OLD_PORT)]


def _of_config(config: Path) -> list[Portal]:
    """Monitors that a configuration file names; other ways to name them are left to Ceph."""
    try:
        text = config.read_text("utf-8", "replace")
    except OSError:
        return []
    match = _MONITORS.search(text)
    words = re.split(r"[\s,;]+", match[1].strip()) if match else []
    return [place for word in words if word for place in _places(_cleaned(word))]


def _cleaned(word: str) -> str:
    """``[v2:HOST:PORT/0`` or ``v1:HOST:PORT/0]`` as HOST:PORT."""
    word = re.sub(r"^\[?v[12]:|/\d+", "", word)
    return word.removesuffix("]") if word.count("]") > word.count("[") else word


def _address(text: str) -> str:
    place = portal(text, 0)
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"{host}:{place.port}" if place.port else host


def reason(said: str) -> str:
    """The line of a tool's messages that tells why it failed, without time stamps and threads."""
    lines = [_STAMP.sub("", line).strip() for line in said.replace("\r", "\n").split("\n") if line.strip()]
    lines = [line for line in lines if " NOTE: " not in line]
    telling = [line for line in lines if "(" in line or "rror" in line]
    return (telling or lines or [""])[-1]


def key_of(user: str, text: str) -> str | None:
    """The key of a user in a keyring, or in a file that holds it alone; None: there is none."""
    section = f"client.{user}"
    for line in text.splitlines():
        if title := _SECTION.fullmatch(line):
            section = title[1].strip()
        elif section == f"client.{user}" and (key := _KEY.fullmatch(line)) and len(key[1]) % 4 == 0:
            return key[1]
    return None


def cluster(found: Definition) -> Cluster:
    """The cluster of a storage.

    Raises:
        PveError: nothing says where it is, or a name is malformed.
    """
    monitors = tuple(found.options.monhost or ())
    user = check_name(found.id, "username", found.options.username or ADMIN)
    return Cluster(found.id, _config(found.id, bool(monitors)), monitors, user, _keyring(found, user, bool(monitors)))


def _config(storage: str, external: bool) -> Path:
    own = paths.etc_pve() / "priv/ceph" / f"{storage}.conf"
    if own.exists():
        return own
    if external:
        return NOTHING
    places = [paths.etc_pve() / "ceph.conf", paths.root() / "etc/ceph/ceph.conf"]
    for place in places:
        if place.exists():
            return place
    raise PveError(
        f"storage '{storage}': there is no Ceph cluster on this host (neither '{places[0]}' nor '{places[1]}'); give "
        "the monitors of another one with: monhost"
    )


def _keyring(found: Definition, user: str, external: bool) -> Path | None:
    own = secrets.path(found.id, found.type, "keyring")
    usual = [
        paths.etc_pve() / f"priv/ceph.client.{user}.keyring",
        paths.root() / f"etc/ceph/ceph.client.{user}.keyring",
    ]
    return next((place for place in [own, *([] if external else usual)] if place.exists()), None)
