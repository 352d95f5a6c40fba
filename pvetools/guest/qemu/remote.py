"""Disks on a server that QEMU talks to itself, in libvirt's words."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pvetools.guest.qemu.build import Build
from pvetools.guest.qemu.element import Element
from pvetools.guest.qemu.secret import Secret
from pvetools.system.errors import Refused

if TYPE_CHECKING:
    from pvetools.storage.driver import Network

# protocol -> libvirt's kind of secrets
_KINDS = {"rbd": "ceph", "iscsi": "iscsi"}


def describe(build: Build, key: str, disk: Element, network: Network) -> None:
    """Write the source of a disk, and note the secret that it needs.

    Raises:
        Refused: a protocol or a place that libvirt cannot serve.
    """
    if network.protocol not in _KINDS:
        raise Refused(f"{key}: QEMU reaches no volumes by '{network.protocol}' here")
    if network.protocol == "rbd" and network.name.count("/") != 1:
        raise Refused(f"{key}: libvirt knows no namespaces of RBD pools ('{network.name}'); set krbd 1 for the storage")
    source = disk.add("source", protocol=network.protocol, name=network.name)
    for name, port in network.hosts:
        source.add("host", name=name, port=port or None)
    if network.config:
        source.add("config", file=network.config)
    if network.initiator:
        source.add("initiator").add("iqn", name=network.initiator)
    if network.user and network.secret:
        secret = _secret(build, key, network, network.secret)
        source.add("auth", username=network.user).add("secret", type=secret.kind, uuid=secret.uuid)
        build.secrets.append(secret)


def _secret(build: Build, key: str, network: Network, file: Path) -> Secret:
    purpose = f"{build.place.name} {key}"
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"pvetools:{purpose}"))
    return Secret(name, _KINDS[network.protocol], purpose, network.user, file)
