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

FORMS = {"btrfs": "raw", "dir": "qcow2", "lvm": "raw", "lvmthin": "raw", "zfspool": "raw"}
NO_SNAPSHOTS = {"lvm"}
TRIES = random.Random(20)  # the same moments in each run
WHERE = {"cwd": payload.CHECKOUT, "environment": {"PYTHONPATH": payload.CHECKOUT}, "timeout": 240}


def command(action: str, bed: str, *rest: str) -> list[str]:
    return ["python3", "-m", "tests.real.storage_vm.interrupted", action, bed, FORMS[bed], *rest]


@pytest.fixture
def beds(machine: Machine) -> list[str]:
    """The storages, made in the VM by the first test that needs them."""
    found = [bed for bed in FORMS if bed in BEDS]
    if machine.run("test -e /srv/power", check=False).status:  # what earlier tests have left is in the way
        machine.run("umount /mnt/dir /mnt/btrfs; vgchange -an; zpool export -a", check=False)
    for bed in found:
        if machine.run(f"test -e /srv/power/{bed}/etc/pve/storage.cfg", check=False).status:
            machine.run(command("prepare", bed), **WHERE)
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("operation", ["alloc", "free", "snapshot", "rollback", "import"])
def test_after_a_power_cut_all_storages_are_whole_and_nothing_is_left(
    machine: Machine, beds: list[str], operation: str
) -> None:
    used = [bed for bed in beds if operation in ("alloc", "free", "import") or bed not in NO_SNAPSHOTS]
    requests = [machine.begin(command("work", bed, operation), lines=True, **WHERE) for bed in used]
    deadline = time.monotonic() + 180
    for request in requests:
        wait_for_step(request, 1, deadline)
    time.sleep(TRIES.uniform(0, 0.5))
    machine.cut_power()
    machine.boot()
    checks = {bed: machine.begin(command("check", bed, operation), **WHERE) for bed in used}
    failed = [str(done) for bed, request in checks.items() if (done := request.wait(260)).status]
    assert not failed, "\n".join(failed)
