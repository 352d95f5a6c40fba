"""Parameters that many methods share."""

from __future__ import annotations

from pvetools.schema.core import Record, field
from pvetools.schema.formats import digest, vmid
from pvetools.schema.formats import node as node_name
from pvetools.system.errors import Refused

# options that the tools keep in guests' files themselves: no user sets them
FILE_ONLY = frozenset({"internal"})


class NodeParams(Record):
    """Methods below ``/nodes/{node}``."""

    node: str = field(node_name, "Name of the node.", required=True)


class GuestParams(NodeParams):
    """Methods below ``/nodes/{node}/{kind}/{vmid}``."""

    vmid: int = field(vmid, "Id of the guest.", required=True)


class DigestParam(Record):
    """Guard against lost updates."""

    digest: str = field(
        digest, "Refuse to change anything when the configuration's SHA-1 digest differs from this one.", default=""
    )


def refuse(params: Record, *names: str) -> None:
    """Refuse parameters that are declared but have no effect in this version.

    Raises:
        Refused: naming those that were given.
    """
    given = [name for name in names if params.given.get(name) not in (None, False, "")]
    if given:
        raise Refused(f"not supported yet: {', '.join(given)}")
