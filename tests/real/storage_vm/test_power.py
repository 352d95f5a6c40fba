"""The power goes while volumes are made, removed, snapshotted, rolled back and imported, on all storages at once."""

from __future__ import annotations

import json
import queue
import random
import time

import pytest

from tests.real.storage_vm.beds import BEDS
from tests.storage_vm import payload
from tests.storage_vm.machine import Machine, Request

FORMS = {"btrfs": "raw", "dir": "qcow2", "lvm": "raw", "lvmchain": "qcow2", "lvmthin": "raw", "zfspool": "raw"}
NO_SNAPSHOTS = {"lvm"}
TRIES = random.Random(20)  # the same moments in each run
PATIENCE = 400.0
WHERE = {"cwd": payload.CHECKOUT, "environment": {"PYTHONPATH": payload.CHECKOUT}, "timeout": PATIENCE}
# the roots of all storages lie on a disk of their own, which has its power cut as well
ROOTS = "/dev/disk/by-id/virtio-data5 /srv/power"
# a saved state has seen empty disks: it knows neither the partitions of ZFS nor what udev has to say
REMEMBER = (
    "for disk in /dev/disk/by-id/virtio-data?; do blockdev --rereadpt $disk; done\n"
    "udevadm trigger --settle --sysname-match='vd*'"
)
RELEASE = "umount /mnt/dir /mnt/btrfs; vgchange -an; zpool export -a; wipefs -qaf /dev/disk/by-id/virtio-data5"


def command(action: str, bed: str, *rest: str) -> list[str]:
    return ["python3", "-m", "tests.real.storage_vm.interrupted", action, bed, FORMS[bed], *rest]


@pytest.fixture
def beds(machine: Machine) -> list[str]:
    """The storages, made in the VM by the first test that needs them."""
    found = [bed for bed in FORMS if bed in BEDS]
    if machine.run("mountpoint -q /srv/power", check=False).status:
        machine.run(RELEASE, check=False)  # what earlier tests have left is in the way
        machine.run(f"set -e; set {ROOTS}; mkfs.ext4 -qF $1; mkdir -p $2; mount $1 $2")
    there = machine.run("cd /srv/power; ls -d */etc/pve/storage.cfg", check=False).stdout
    made = [machine.begin(command("prepare", bed), **WHERE) for bed in found if f"{bed}/" not in there]
    failed = [str(done) for request in made if (done := request.wait(PATIENCE + 20)).status]
    assert not failed, "\n".join(failed)
    return found


def wait_for_step(request: Request, number: int, deadline: float) -> None:
    """Until a step has begun."""
    while True:
        try:
            message = request.inbox.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            pytest.fail(f"{request.command}: step {number} did not begin\n{request.machine.console()}")
        assert message and "line" in message, f"{request.command} ended too early: {message}"
        if json.loads(message["line"]) == f"begin {number}":
            return


def switch_on(machine: Machine, operation: str) -> None:
    """Boot again; a boot costs minutes, so mostly into the saved state, whose memory knows nothing of the storages."""
    if operation == "alloc":
        machine.boot()
    else:
        machine.start()
        machine.run(REMEMBER, timeout=200)
    machine.run(f"set -e; set {ROOTS}; mkdir -p $2; mount $1 $2")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("operation", ["alloc", "free", "snapshot", "rollback", "import"])
def test_after_a_power_cut_all_storages_are_whole_and_nothing_is_left(
    machine: Machine, beds: list[str], operation: str
) -> None:
    used = [bed for bed in beds if operation in ("alloc", "free", "import") or bed not in NO_SNAPSHOTS]
    requests = [machine.begin(command("work", bed, operation), lines=True, **WHERE) for bed in used]
    deadline = time.monotonic() + PATIENCE
    try:
        for request in requests:
            wait_for_step(request, 1, deadline)
        time.sleep(TRIES.uniform(0, 0.5))
    finally:
        machine.cut_power()
    switch_on(machine, operation)
    checks = {bed: machine.begin(command("check", bed, operation), **WHERE) for bed in used}
    failed = [str(done) for bed, request in checks.items() if (done := request.wait(PATIENCE + 20)).status]
    assert not failed, "\n".join(failed)
