"""Runs in the storage VM for test_power.py: uses storages until the power is cut, and looks at them afterwards.

    python3 -m tests.real.storage_vm.interrupted prepare BED FORM
    python3 -m tests.real.storage_vm.interrupted work BED FORM alloc|free|snapshot|rollback|import
    python3 -m tests.real.storage_vm.interrupted check BED FORM alloc|free|snapshot|rollback|import

Each bed has a root of its own, which stays; `work` tells each step on the descriptor REPORTS_FD.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pvetools.storage import transfer, volumes
from pvetools.storage.transfer import State
from pvetools.system import log, paths
from tests.real.storage_vm.beds import BEDS, STORAGE, sh
from tests.real.storage_vm.contract import MIB, holds, put

SIZE = 8 * MIB
WITNESS = 900  # a guest whose volume nobody touches
OLD, NEW, SEEN = 0x11, 0x22, 0x33
SENT = State(snapshot="sent")
# what a host does at boot and the bed does only once
AGAIN = {
    "btrfs": "mkdir -p /mnt/btrfs; mount /dev/disk/by-id/virtio-data4 /mnt/btrfs",
    "dir": "mkdir -p /mnt/dir; mount /dev/disk/by-id/virtio-data3 /mnt/dir",
    "zfspool": "zpool import -f -o cachefile=none tank; zfs mount -a",
}


def tell(text: str) -> None:
    os.write(int(os.environ["REPORTS_FD"]), f'"{text}"\n'.encode())


def owned(vmid: int) -> list[str]:
    return [found.volid for found in volumes.list_volumes(STORAGE, vmid=vmid)]


def full(volid: str, byte: int) -> bool:
    return holds(volid, byte, 0, SIZE)


def new(volid: str) -> bool:
    """Whether a volume is as it was made. One that was just being made may be listed already, without a size."""
    return volumes.info(volid).size == 0 or full(volid, 0)


def prepare(bed: str, form: str) -> None:
    """Make the bed for good, with the volume of the witness."""
    manager = BEDS[bed]()  # kept: the bed would go with it
    made = manager.__enter__()
    paths.etc_pve().mkdir(parents=True)
    paths.storage_config().write_text(f"{made.section}\tcontent {made.content}\n")
    put(volumes.alloc(STORAGE, WITNESS, SIZE, format=form), SEEN, 0, SIZE)
    sh("sync")
    sys.stdout.flush()
    os._exit(0)  # the bed stays


# Work: what is needed first, then the step that the power cut is to meet.


def _ready_nothing(form: str) -> None:
    pass


def _ready_many(form: str) -> None:
    for _ in range(3):
        put(volumes.alloc(STORAGE, 100, SIZE, format=form), OLD, 0, SIZE)


def _ready_one(form: str) -> None:
    put(volumes.alloc(STORAGE, 100, SIZE, format=form), OLD, 0, SIZE)


def _ready_kept(form: str) -> None:
    _ready_one(form)
    (volid,) = owned(100)
    volumes.snapshot(volid, "first")
    put(volid, NEW, 0, SIZE)


def _ready_stream(form: str) -> None:
    """Have what is imported in a file: in the storage's own format, where there is one."""
    _ready_one(form)
    (volid,) = owned(100)
    own = [kind for kind in transfer.exports(volid, SENT) if not kind.endswith("+size")]
    state = SENT if own else transfer.NOW
    if own:
        volumes.snapshot(volid, SENT.snapshot)
    kind = own[0] if own else "raw+size"
    with Path(os.environ["PVETOOLS_ROOT"], f"stream.{kind}").open("wb") as file:
        transfer.export(volid, kind, file.fileno(), state)
    volumes.free(volid)


def _fetch(*, rename: bool) -> str:
    """Import the stream as the first volume of guest 100, or as another one if that is there."""
    (file,) = Path(os.environ["PVETOOLS_ROOT"]).glob("stream.*")
    kind, name = file.suffix.removeprefix("."), owned(WITNESS)[0].replace(str(WITNESS), "100")
    with file.open("rb") as stream:
        state = transfer.NOW if kind.endswith("+size") else SENT
        return transfer.import_(name, kind, stream.fileno(), state, rename=rename)


def _free_all() -> None:
    for volid in owned(100):
        volumes.free(volid)


def _alloc(form: str, number: int) -> None:
    if number % 10 == 9:
        _free_all()
    volumes.alloc(STORAGE, 100, SIZE, format=form)


def _free(form: str, _number: int) -> None:
    found = owned(100)
    volumes.free(found[0] if found else volumes.alloc(STORAGE, 100, SIZE, format=form))


def _snapshot(form: str, number: int) -> None:
    (volid,) = owned(100)
    if number >= 4:
        volumes.delete_snapshot(volid, f"number{number - 3}")
    volumes.snapshot(volid, f"number{number}")


def _rollback(form: str, _number: int) -> None:
    volumes.rollback(owned(100)[0], "first")


def _import(_form: str, number: int) -> None:
    if number % 10 == 9:
        _free_all()
    _fetch(rename=True)


WORK: dict[str, tuple[Callable[[str], None], Callable[[str, int], None]]] = {
    "alloc": (_ready_nothing, _alloc),
    "free": (_ready_many, _free),
    "snapshot": (_ready_one, _snapshot),
    "rollback": (_ready_kept, _rollback),
    "import": (_ready_stream, _import),
}


def work(bed: str, form: str, operation: str) -> None:
    """Do it again and again, for as long as there is power."""
    ready, step = WORK[operation]
    _free_all()  # what an earlier test that failed has left
    ready(form)
    sh("sync")
    for number in count():
        tell(f"begin {number}")
        step(form, number)
        tell(f"end {number}")


# Checks: the storage works, nobody else was harmed, and the next command leaves nothing behind.


def _check_alloc(form: str) -> None:
    found = owned(100)
    for volid in found:
        assert volumes.info(volid).size in (0, SIZE)
        assert new(volid), f"{volid} is not empty"
    made = volumes.alloc(STORAGE, 100, SIZE, format=form)
    assert made not in found
    assert full(made, 0)


def _check_free(form: str) -> None:
    assert all(new(volid) or full(volid, OLD) for volid in owned(100)), "a volume is there by half"
    made = volumes.alloc(STORAGE, 101, 2 * SIZE, format=form)  # larger than what became free: it lies on all of it
    assert holds(made, 0, 0, 2 * SIZE)


def _check_snapshot(form: str) -> None:
    (volid,) = owned(100)
    assert full(volid, OLD)
    found = [row.name for row in volumes.snapshots(volid)]
    assert "number0" in found
    put(volid, NEW, 0, SIZE)
    for name in reversed(found):
        volumes.rollback(volid, name)
        assert full(volid, OLD), name
        volumes.delete_snapshot(volid, name)
    volumes.snapshot(volid, "number0")


def _check_rollback(form: str) -> None:
    (volid,) = owned(100)
    assert full(volid, OLD) or full(volid, NEW), "neither the old state nor the new one"
    assert [row.name for row in volumes.snapshots(volid)] == ["first"]
    volumes.rollback(volid, "first")
    assert full(volid, OLD)


def _check_import(form: str) -> None:
    for volid in owned(100):
        volumes.info(volid)  # also one that came by half
        volumes.free(volid)
    assert full(_fetch(rename=False), OLD)


CHECKS = {
    "alloc": _check_alloc, "free": _check_free, "snapshot": _check_snapshot, "rollback": _check_rollback,
    "import": _check_import,
}  # fmt: skip

# Everything that a bed holds, by its own tools: nothing may be left that no volume accounts for.
LEFT = {
    "btrfs": "find /mnt/btrfs/images -type f -o -name '.*' | sort",
    "dir": "find /mnt/dir/images -type f -o -type d -name 'vm-*' | sort",
    "lvm": "lvs --noheadings -o lv_name vgdata",
    "lvmchain": "lvs --noheadings -o lv_name vgchain",
    "lvmthin": "lvs --noheadings -o lv_name vgthin",
    "zfspool": "zfs list -H -o name -t all -r tank/vms",
}


def check(bed: str, form: str, operation: str) -> None:
    """After the boot."""
    sh(AGAIN.get(bed, "true"))
    with log.sink(print):
        (witness,) = owned(WITNESS)
        assert full(witness, SEEN), "the volume of another guest was harmed"
        CHECKS[operation](form)
        for volid in [*owned(100), *owned(101)]:
            volumes.free(volid)
        assert [found.volid for found in volumes.list_volumes(STORAGE)] == [witness]
        assert full(witness, SEEN), "the volume of another guest was harmed"
        left = [line for line in sh(LEFT[bed]).split() if Path(line).name not in ("pool", "tank", "vms")]
        assert [Path(line).name for line in left] == [volumes.path(witness).name], left
    sh("sync")


def main() -> None:
    action, bed, form, *rest = sys.argv[1:]
    os.environ["PVETOOLS_ROOT"] = f"/srv/power/{bed}"
    {"prepare": prepare, "work": work, "check": check}[action](bed, form, *rest)


if __name__ == "__main__":
    main()
