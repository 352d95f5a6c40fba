"""The client library proxmoxer drives guests through ``pvesh``."""

from __future__ import annotations

from typing import Any

import pytest

from pvetools.system.task import parse_upid

pytestmark = pytest.mark.timeout(180)


def test_the_client_sees_version_node_and_storage(client: Any, node: str) -> None:
    assert client.version.get()["release"]
    assert [row["node"] for row in client.nodes.get()] == [node]
    assert client.nodes(node).status.get()["memory"]["total"] > 0
    storages = {row["storage"]: row for row in client.nodes(node).storage.get()}
    assert storages["local"]["active"] == 1
    assert storages["local"]["total"] > 0
    assert {row["type"] for row in client.cluster.resources.get()} == {"node", "storage"}
    assert client.cluster.nextid.get() == 100
    assert {row["name"] for row in client.nodes(node).get()} >= {"qemu", "lxc", "storage", "tasks", "status"}


def test_the_client_makes_starts_stops_and_deletes_a_virtual_machine(client: Any, node: str) -> None:
    machines = client.nodes(node).qemu
    upid = machines.post(
        vmid=100, name="web", memory=64, kvm=0, scsi0="local:1", net0="virtio,bridge=vmbr0", onboot=True
    )
    assert parse_upid(upid).type == "qmcreate"
    config = machines(100).config.get()
    assert (config["name"], int(config["memory"]), config["onboot"]) == ("web", 64, 1)
    assert config["scsi0"].startswith("local:100/")
    assert [(row["vmid"], row["name"], row["status"]) for row in machines.get()] == [(100, "web", "stopped")]

    started = machines(100).status.start.post()
    assert machines(100).status.current.get()["status"] == "running"
    (row,) = client.cluster.resources.get(type="vm")
    assert (row["id"], row["status"], row["maxmem"]) == ("qemu/100", "running", 64 << 20)
    assert client.nodes(node).tasks(started).status.get()["exitstatus"] == "OK"
    assert client.nodes(node).tasks(started).log.get(limit=1000)[-1]["t"] == "TASK OK"

    machines(100).status.stop.post()
    assert machines(100).status.current.get()["status"] == "stopped"
    machines(100).config.put(name="renamed", delete="onboot")
    assert machines(100).config.get()["name"] == "renamed"
    machines(100).delete(purge=1)
    assert machines.get() == []
    assert [row["type"] for row in client.nodes(node).tasks.get(vmid=100)] == [
        "qmdestroy",
        "qmstop",
        "qmstart",
        "qmcreate",
    ]


def test_the_client_makes_starts_stops_and_deletes_a_container(client: Any, node: str, local_template: str) -> None:
    containers = client.nodes(node).lxc
    containers.post(
        vmid=101, hostname="ct", ostemplate=local_template, ostype="unmanaged", memory=64, rootfs="local:0",
        unprivileged=1,
    )  # fmt: skip
    assert containers(101).config.get()["hostname"] == "ct"
    containers(101).status.start.post()
    assert containers(101).status.current.get()["status"] == "running"
    assert [(row["vmid"], row["status"]) for row in containers.get()] == [(101, "running")]
    containers(101).status.stop.post()
    assert containers(101).status.current.get()["status"] == "stopped"
    containers(101).delete()
    assert containers.get() == []


def test_the_client_gets_errors_with_status_and_reasons(client: Any, node: str) -> None:
    from proxmoxer.core import ResourceException

    def refused(call: Any) -> ResourceException:
        with pytest.raises(ResourceException) as caught:
            call()
        return caught.value

    wrong = refused(lambda: client.nodes(node).qemu.post(vmid=7, memory="much", frobnicate=1))
    assert wrong.status_code == 400
    assert "frobnicate" in str(wrong.content)
    assert "memory" in str(wrong.content)
    assert refused(lambda: client.nodes(node).qemu(999).config.get()).status_code == 404
    assert refused(lambda: client.nodes(node).nothing.get()).status_code == 501
    assert refused(lambda: client.nodes(node).qemu(100).status.start.post()).status_code == 404
