"""What lies in the pool of the beds with ZFS, by its own tools."""

from __future__ import annotations

from tests.real.storage_vm.beds import sh

POOL = "tank/vms"


def value(name: str, own: str) -> str:
    """A property of a volume."""
    return sh(f"zfs get -Hp -o value {name} {POOL}/{own}").strip()


def datasets() -> list[str]:
    """All that lies in the pool, with snapshots."""
    return sh(f"zfs list -H -r -t all -o name {POOL}").replace(f"{POOL}/", "").split()[1:]
