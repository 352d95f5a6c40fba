"""How a storage's Ceph cluster is reached: what its tools and QEMU are told, where keys are found."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvetools.options.storage import StorageOptions
from pvetools.storage import ceph, san, secrets
from pvetools.storage.backends.cephfs import CephFs
from pvetools.storage.backends.rbd import Rbd
from pvetools.storage.definition import Definition
from pvetools.storage.mounts import Mount
from pvetools.system.errors import PveError, Refused

KEY = "QVFESmxhLXRoaXMtaXMtbm8ta2V5"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    (tmp_path / "etc/pve/priv/ceph").mkdir(parents=True)
    (tmp_path / "etc/ceph").mkdir()
    return tmp_path


def storage(type_: str = "rbd", **options: str) -> Definition:
    raw = {key.replace("_", "-"): value for key, value in options.items()}
    return Definition("store", type_, StorageOptions.read({"storage": "store", "type": type_, **raw}))


def test_the_cluster_of_this_host_is_found_by_its_configuration(root: Path) -> None:
    with pytest.raises(PveError, match=r"no Ceph cluster on this host \(neither .*; give the monitors .* monhost"):
        ceph.cluster(storage())
    (root / "etc/ceph/ceph.conf").write_text("")
    (root / "etc/ceph/ceph.client.admin.keyring").write_text("")
    found = ceph.cluster(storage())
    assert found.config == root / "etc/ceph/ceph.conf"
    assert found.keyring == root / "etc/ceph/ceph.client.admin.keyring"
    (root / "etc/pve/ceph.conf").write_text("")
    assert ceph.cluster(storage()).config == root / "etc/pve/ceph.conf"
    assert "-m" not in found.words()


def test_another_cluster_has_nothing_from_the_one_of_this_host(root: Path) -> None:
    for name in ("ceph.conf", "ceph.client.me.keyring"):
        (root / "etc/ceph" / name).write_text("")
    found = ceph.cluster(storage(monhost="192.0.2.1 2001:db8::1,[2001:db8::2]:6789;mon.example", username="me"))
    monitors = "192.0.2.1,[2001:db8::1],[2001:db8::2]:6789,mon.example"
    assert found.words() == [
        "--conf", "/dev/null", "--name", "client.me", "-m", monitors, "--auth_client_required", "none"
    ]  # fmt: skip
    secrets.write("store", "rbd", {"keyring": f"[client.me]\nkey = {KEY}"})
    place = root / "etc/pve/priv/ceph/store.keyring"
    found = ceph.cluster(storage(monhost="192.0.2.1", username="me"))
    assert found.words()[-2:] == ["--keyring", str(place)]
    assert place.stat().st_mode & 0o777 == 0o600
    (root / "etc/pve/priv/ceph/store.conf").write_text("[global]\n")
    assert ceph.cluster(storage(monhost="192.0.2.1")).config == root / "etc/pve/priv/ceph/store.conf"


def test_monitors_may_listen_at_the_ports_of_both_protocols() -> None:
    found = ceph.cluster(storage(monhost="192.0.2.1 [2001:db8::2]:6789 mon.example"))
    assert [str(place) for place in found.portals] == [
        "192.0.2.1:3300", "192.0.2.1:6789", "[2001:db8::2]:6789", "mon.example:3300", "mon.example:6789"
    ]  # fmt: skip


def test_signs_that_separate_are_escaped_in_names_of_images(root: Path) -> None:
    backend = Rbd(storage(monhost="::1 192.0.2.1", pool="pool.1", namespace="space", username="me"))
    url = str(backend.path("vm-100-disk-0", "snap"))
    assert url == (
        "rbd:pool.1/space/vm-100-disk-0@snap:conf=/dev/null:id=me:mon_host=[\\:\\:1];192.0.2.1:auth_client_required=none"
    )
    kernel = Rbd(storage(monhost="::1", krbd="1"))
    assert str(kernel.path("base-100-disk-0/vm-101-disk-0")) == "/dev/rbd/rbd/vm-101-disk-0"
    assert (backend.info.io_uring, kernel.info.io_uring) == ("always", "direct")


@pytest.mark.parametrize("option", ["pool", "namespace", "data_pool", "username"])
@pytest.mark.parametrize("name", ["-x", "a/b", "a@b", "a b", "a:b", "a\nb", "ä", "$(id)", "a" * 200])
def test_names_that_are_none_reach_no_tool(option: str, name: str) -> None:
    with pytest.raises(PveError, match=r"(?s)store.* is no valid name"):
        Rbd(storage(monhost="192.0.2.1", **{option: name})).activate()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"[client.me]\n\tkey = {KEY}\n\tcaps mon = \"allow *\"\n", KEY),
        (f"{KEY}\n", KEY),
        (f"key={KEY}", KEY),
        (f"[client.other]\nkey = b3RoZXI=\n[client.me]\nkey = {KEY}\n", KEY),
        ("[client.other]\nkey = b3RoZXI=\n", None),
        ("", None),
        ("[client.me]\nkey = nonsense!\n", None),
    ],
)  # fmt: skip
def test_the_key_of_a_user_in_a_keyring(text: str, key: str | None) -> None:
    assert ceph.key_of("me", text) == key


@pytest.mark.parametrize(
    ("line", "places"),
    [
        ("mon_host = [v2:192.0.2.1:3300,v1:192.0.2.1:6789]", ["192.0.2.1:3300", "192.0.2.1:6789"]),
        ("mon host = 192.0.2.1:6789 192.0.2.2", ["192.0.2.1:6789", "192.0.2.2:3300", "192.0.2.2:6789"]),
        ("mon_host=[v2:[::1]:3300/0,v1:[::1]:6789/0]", ["[::1]:3300", "[::1]:6789"]),
        ("\tmon_host = [::1]", ["[::1]:3300", "[::1]:6789"]),
        ("mon_initial_members = a", []),
    ],
)
def test_monitors_are_read_from_a_configuration(root: Path, line: str, places: list[str]) -> None:
    config = root / "etc/ceph/ceph.conf"
    config.write_text(f"[global]\n{line}\nfsid = x\n")
    assert [str(place) for place in ceph._of_config(config)] == places


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "2026-11-26T07:00:00.123+0000 7f2d3c7fe640 -1 librbd::image::OpenRequest: failed\n"
            "rbd: error opening image x: (2) No such file or directory\n",
            "rbd: error opening image x: (2) No such file or directory",
        ),
        ("rbd: couldn't connect to the cluster!\nrbd: listing images failed: (110) Connection timed out", None),
        ("", ""),
    ],
)
def test_the_telling_line_of_what_a_tool_said(said: str, reason: str | None) -> None:
    assert ceph.reason(said) == (said.splitlines()[-1] if reason is None else reason)


@pytest.fixture
def monitor() -> Iterator[tuple[str, list[bytes]]]:
    """Something that says one thing to everyone who connects."""
    says: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    link.sendall(says[0])

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", says
        server.shutdown(socket.SHUT_RDWR)


def test_a_monitor_shows_itself_by_its_first_words(monitor: tuple[str, list[bytes]]) -> None:
    address, says = monitor
    says[:] = [b"ceph v2\n"]
    ceph.reach(ceph.cluster(storage(monhost=f"127.0.0.1:1 {address}")))
    ceph.reach(ceph.cluster(storage(monhost=f"{address} {address} 127.0.0.1:1")))
    says[:] = [b"SSH-2.0"]
    with pytest.raises(PveError, match=r"what answers at '127.0.0.1:\d+' is no monitor of Ceph"):
        ceph.reach(ceph.cluster(storage(monhost=address)))
    with pytest.raises(PveError, match=r"monitor '127.0.0.1:1' does not answer"):
        ceph.reach(ceph.cluster(storage(monhost="127.0.0.1:1 127.0.0.1:1")))


def test_nobody_waits_for_monitors_that_say_nothing(
    monitor: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, says = monitor
    says[:] = [b"ceph v2\n"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(san.connect, "__defaults__", (3600.0,))
        ceph.reach(ceph.cluster(storage(monhost=f"{mute} {address} {mute}")))


def cephfs(**options: str) -> CephFs:
    return CephFs(storage("cephfs", **{"monhost": "192.0.2.1 ::1", "username": "me", **options}))


def test_a_file_system_is_mounted_by_the_kernel(root: Path) -> None:
    secrets.write("store", "cephfs", {"keyring": KEY})
    backend = cephfs(subdir="/vms", fs_name="second", options="noatime")
    words = backend.wanted(Path("/mnt/x")).words()
    assert words[:5] == ["mount", "-t", "ceph", "192.0.2.1,[::1]:/vms", "/mnt/x"]
    secret = f"secretfile={root}/etc/pve/priv/ceph/store.secret"
    assert words[-1].split(",") == ["name=me", "conf=/dev/null", secret, "mds_namespace=second", "noatime"]
    assert KEY not in " ".join(words)


@pytest.mark.parametrize(
    ("kind", "source", "ours"),
    [
        ("ceph", "192.0.2.1:6789,[::1]:6789:/vms", True),
        ("ceph", "me@0f6c2e6a-5f0a-5a0a-8f0a-000000000100.second=/vms", True),
        ("ceph", "192.0.2.1:6789:/", False),
        ("ceph", "192.0.2.1:6789:/other/vms", False),
        ("nfs4", "192.0.2.1:/vms", False),
    ],
)
def test_what_the_kernel_has_mounted_is_known_again(root: Path, kind: str, source: str, ours: bool) -> None:
    assert cephfs(subdir="/vms").wanted(Path("/mnt/x")).fits(Mount("/mnt/x", source, kind)) is ours


def test_a_file_system_is_mounted_by_fuse(root: Path) -> None:
    secrets.write("store", "cephfs", {"keyring": KEY})
    words = cephfs(fuse="1", subdir="/vms", fs_name="second").wanted(Path("/mnt/x")).words()
    assert words == [
        "ceph-fuse", "--conf", "/dev/null", "--name", "client.me", "-r", "/vms", "-m", "192.0.2.1,[::1]", "--keyfile",
        f"{root}/etc/pve/priv/ceph/store.secret", "--client_fs", "second", "/mnt/x",
    ]  # fmt: skip


def test_of_a_whole_keyring_a_mount_gets_the_key_alone(root: Path) -> None:
    secrets.write("store", "cephfs", {"keyring": f"[client.me]\n\tkey = {KEY}\n"})
    cephfs()._check_secret()
    place = root / "etc/pve/priv/ceph/store.secret"
    assert place.read_text() == f"{KEY}\n"
    assert place.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PveError, match=r"store.secret' holds no key of user 'client.you'"):
        place.write_text(f"[client.me]\nkey = {KEY}\n")
        cephfs(username="you")._check_secret()


@pytest.mark.parametrize("word", ["secret=x", "secretfile=/x", "name=x", "conf=/x", "fs=x", "mds_namespace=x"])
def test_mount_options_do_not_say_what_the_storage_says(word: str) -> None:
    with pytest.raises(Refused, match=rf"mount option '{word.partition('=')[0]}' can't be served"):
        cephfs(options=f"noatime,{word}").check()
