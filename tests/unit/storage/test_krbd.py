"""Images of Ceph in the kernel: one device for each, however many commands want it at once.

The kernel's list is a folder here, and `rbd` a script that keeps it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pvetools.storage import blockdev, ceph, krbd
from pvetools.storage.krbd import Image

IMAGE = Image("vms", "", "vm-100-disk-0")
FSID = "0f6c2e6a-5f0a-5a0a-8f0a-000000000100"
RBD = f"""#!/bin/sh
bus={{bus}}
case " $* " in
*" device map "*)
    sleep 0.2  # as long as others have to look
    number=0
    until mkdir "$bus/$number" 2>/dev/null; do number=$((number + 1)); done
    cd "$bus/$number"
    echo vms > pool; : > pool_ns; echo vm-100-disk-0 > name; echo - > current_snap; echo {FSID} > cluster_fsid;;
*" device unmap "*)
    for word; do device=$word; done
    [ ! -e "$bus/${{device#/dev/rbd}}/busy" ] || exit 16
    rm -r "$bus/${{device#/dev/rbd}}";;
esac
"""


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bus"
    path.mkdir()
    program = tmp_path / "bin/rbd"
    program.parent.mkdir()
    program.write_text(RBD.replace("{bus}", str(path)))
    program.chmod(0o755)
    (tmp_path / "ceph.conf").write_text(f"fsid = {FSID}\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    monkeypatch.setattr(krbd, "_BUS", path)
    monkeypatch.setattr(blockdev, "wait_for", lambda path: None)
    return path


@pytest.fixture
def cluster(tmp_path: Path, bus: Path) -> ceph.Cluster:
    return ceph.Cluster("store", tmp_path / "ceph.conf", (), "admin", None)


def test_an_image_that_many_want_at_once_gets_one_device(cluster: ceph.Cluster, bus: Path) -> None:
    found: list[Path] = []
    wanting = [threading.Thread(target=lambda: found.append(krbd.map_(cluster, IMAGE))) for _ in range(4)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join(30)
    assert found == [Path("/dev/rbd0")] * 4
    assert [path.name for path in bus.iterdir()] == ["0"]


def test_all_devices_of_an_image_go(cluster: ceph.Cluster, bus: Path) -> None:
    for _ in range(3):
        cluster.run("rbd", "device", "map", IMAGE.spec)
    assert krbd.unmap(cluster, IMAGE) == ""
    assert [*bus.iterdir()] == []
    assert krbd.unmap(cluster, IMAGE) == ""


def test_who_uses_one_of_the_devices_is_told(cluster: ceph.Cluster, bus: Path) -> None:
    cluster.run("rbd", "device", "map", IMAGE.spec)
    (bus / "0/busy").touch()
    assert krbd.unmap(cluster, IMAGE) == "this host's kernel"
    assert [path.name for path in bus.iterdir()] == ["0"]
