"""Keys of storage servers: how libvirt gets them, and that they stand nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvetools.guest.qemu.secret import Secret
from pvetools.system.errors import PveError, Refused
from tests.unit.qemu.places import STORES, define

KEYRING = """\
[client.other]
\tkey = b3RoZXI=
[client.admin]
\tkey = c2VjcmV0
\tcaps mon = "allow *"
"""


def kept(folder: Path, kind: str, text: str, user: str = "admin") -> Secret:
    file = folder / "kept"
    file.write_text(text)
    return Secret("00000000-0000-0000-0000-000000000001", kind, "vm scsi0", user, file)


def test_the_key_of_the_user_is_found_in_a_keyring(tmp_path: Path) -> None:
    assert kept(tmp_path, "ceph", KEYRING).value() == b"secret"
    assert kept(tmp_path, "ceph", KEYRING, "other").value() == b"other"
    assert kept(tmp_path, "ceph", "key = c2VjcmV0\n").value() == b"secret"


@pytest.mark.parametrize("text", ["", "[client.other]\nkey = c2VjcmV0\n", "[client.admin]\nkey = not/base64!\n"])
def test_a_keyring_without_the_key_is_named_but_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(PveError, match=r"holds no key of user 'client.admin'") as caught:
        kept(tmp_path, "ceph", text).value()
    assert "not/base64" not in str(caught.value)


def test_a_password_is_the_file_without_its_line_end(tmp_path: Path) -> None:
    assert kept(tmp_path, "iscsi", "pässword \n").value() == "pässword ".encode()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    secret = Secret("", "iscsi", "", "me", tmp_path / "gone")
    with pytest.raises(PveError, match=r"can't read '.*gone' with the key of user 'me': No such file"):
        secret.value()


def test_libvirt_is_told_to_keep_it_in_memory_and_to_itself(tmp_path: Path) -> None:
    text = kept(tmp_path, "ceph", KEYRING).definition()
    assert 'ephemeral="yes" private="yes"' in text
    assert "c2VjcmV0" not in text


def test_each_disk_of_each_guest_has_a_secret_of_its_own() -> None:
    text = "kvm: 0\nscsi0: rbd:vm-100-disk-0\nscsi1: rbd:vm-100-disk-1\nscsi2: local-ceph:vm-100-disk-2\n"
    found = define(text).secrets
    assert [secret.purpose for secret in found] == ["pvetools-100 scsi0", "pvetools-100 scsi1"]
    assert len({secret.uuid for secret in found}) == 2
    assert found[0].uuid != define(text, name="pvetools-200").secrets[0].uuid


def test_what_libvirt_cannot_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"knows no namespaces of RBD pools .*set krbd 1"):
        define("kvm: 0\nscsi0: rbd:space/vm-100-disk-0\n")
    odd = STORES["rbd"]("vm-100-disk-0")
    monkeypatch.setitem(STORES, "rbd", lambda _: odd._replace(network=odd.network._replace(protocol="gopher")))
    with pytest.raises(Refused, match="scsi0: QEMU reaches no volumes by 'gopher' here"):
        define("kvm: 0\nscsi0: rbd:vm-100-disk-0\n")


def test_asking_for_a_way_of_io_that_a_server_does_not_know_is_told() -> None:
    assert "aio=threads has no effect" in define("kvm: 0\nscsi0: rbd:vm-100-disk-0,aio=threads\n").warnings[0]
