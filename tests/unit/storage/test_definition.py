"""Definitions of storages: mount points, secrets, the proof that a storage works, and what is left when it does not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pvetools.api import tree
from pvetools.storage import defining, definition, mounts, registry, secrets, servers
from pvetools.system import log, paths
from pvetools.system.errors import Exists, NotFound, ParamErrors, PveError, Refused
from tests.unit.storage.test_servers import listening

# Nothing listens there: the connection is refused at once.
NFS = {"server": "127.0.0.1", "export": "/srv", "options": "port=9"}
CIFS = {"server": "127.0.0.1", "share": "data", "username": "me", "password": "s3cret", "options": "port=9"}


def config() -> str:
    path = paths.storage_config()
    return path.read_text() if path.exists() else ""


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


@pytest.mark.parametrize(("type_", "raw"), [("nfs", NFS), ("cifs", {**CIFS, "password": "s3cret"})])
def test_storages_of_servers_are_mounted_below_one_folder(root: Path, type_: str, raw: dict[str, str]) -> None:
    made = defining.add("one", type_, {**raw, "disable": "1"})
    assert made.options.path == str(root / "mnt/pve/one")
    assert config().startswith(f"{type_}: one\n\tdisable\n\tpath {root}/mnt/pve/one\n\tserver 127.0.0.1\n")
    assert definition.get("one").options.path == str(root / "mnt/pve/one")
    defining.add("two", type_, {**raw, "path": "/srv/elsewhere", "disable": "1"})
    assert definition.get("two").options.path == "/srv/elsewhere"


def test_a_section_without_its_mount_point_is_understood(root: Path) -> None:
    paths.storage_config().write_text("nfs: old\n\tserver a\n\texport /b\n\ndir: here\n\tcontent iso\n")
    assert definition.get("old").options.path == str(root / "mnt/pve/old")
    assert definition.get("here").options.path is None


def test_a_password_lies_in_no_definition(root: Path) -> None:
    made = defining.add("one", "cifs", {**CIFS, "disable": "1"})
    assert "s3cret" not in config()
    assert "\tpassword" not in config()
    assert "password" not in made.as_data()
    assert "s3cret" not in repr(made)
    file = root / "etc/pve/priv/storage/one.pw"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("password=s3cret\n", 0o600)


def test_a_changed_password_is_kept_and_a_deleted_one_is_gone(root: Path) -> None:
    defining.add("one", "cifs", {**CIFS, "disable": "1"})
    before = config()
    defining.update("one", {"password": "other"})
    assert secrets.read("one", "cifs", "password") == "other"
    assert config() == before
    defining.update("one", {"content": "iso"}, delete=["password"])
    assert secrets.read("one", "cifs", "password") is None
    assert "content iso" in config()


def test_everything_that_is_wrong_with_a_deletion_is_said_at_once(root: Path) -> None:
    defining.add("one", "dir", {"path": str(root)})
    with pytest.raises(ParamErrors) as caught:
        defining.update("one", {}, delete=["nonsense", "path", "pool"])
    for sentence in ("unknown option 'nonsense'", "fixed option 'path'", "unknown option 'pool'"):
        assert sentence in str(caught.value)


def test_secrets_go_with_the_storage(root: Path) -> None:
    defining.add("one", "cifs", {**CIFS, "disable": "1"})
    defining.remove("one")
    assert config() == ""
    assert not [*(root / "etc/pve/priv/storage").iterdir()]


@pytest.mark.parametrize(
    ("type_", "raw", "sentence"),
    [
        ("nfs", NFS, r"storage 'one': server '127\.0\.0\.1' is not online \(port 9: Connection refused\)"),
        ("cifs", CIFS, r"storage 'one': server '127\.0\.0\.1' is not online \(port 9: Connection refused\)"),
        (
            "cifs",
            {**CIFS, "username": "me,uid=0"},
            "value 'me,uid=0' of option 'username' has signs that a mount can't",
        ),
        ("cifs", {**CIFS, "domain": "a,b"}, "value 'a,b' of option 'domain' has signs"),
        ("cifs", {**CIFS, "share": "../x\\y"}, "option 'share' has signs"),
        ("cifs", {**CIFS, "share": "data,uid=0"}, "value 'data,uid=0' of option 'share' has signs"),
        ("cifs", {**CIFS, "options": "soft,pass=abc"}, "mount option 'pass' can't be served"),
        ("cifs", {**CIFS, "password": "a\nb"}, "the password of storage 'one' must not contain line breaks"),
        ("nfs", {**NFS, "options": "port=9,bg"}, "mount option 'bg' can't be served"),
        ("dir", {"path": "/proc/nope"}, "unable to activate storage 'one' - directory '/proc/nope'"),
    ],
)
def test_what_cannot_be_reached_is_not_defined(root: Path, type_: str, raw: dict[str, str], sentence: str) -> None:
    with pytest.raises(PveError, match=sentence) as told:
        defining.add("one", type_, raw)
    assert "s3cret" not in str(told.value)
    assert config() == ""
    assert not any(name.endswith(".pw") for name in below(root))
    assert not (root / "mnt").exists()


def test_a_user_needs_a_password(root: Path) -> None:
    with pytest.raises(PveError, match=r"user 'me' has no password \(option password\)"):
        defining.add("one", "cifs", {key: text for key, text in CIFS.items() if key != "password"})


def test_a_failing_definition_brings_an_older_secret_back(root: Path) -> None:
    """Such as a keyring that was laid there by hand."""
    secrets.write("one", "cifs", {"password": "by hand"})
    with pytest.raises(PveError):
        defining.add("one", "cifs", CIFS)
    assert secrets.read("one", "cifs", "password") == "by hand"


def test_a_change_that_does_not_work_changes_nothing(root: Path) -> None:
    defining.add("one", "cifs", {**CIFS, "disable": "1"})
    defining.update("one", {}, delete=["disable"])  # nothing about the way to the server
    before = config()
    for raw in ({"password": "other"}, {"username": "you"}, {"options": "port=10"}):
        with pytest.raises(PveError, match="is not online"):
            defining.update("one", raw)
    with pytest.raises(PveError, match="is not online"):
        defining.update("one", {}, delete=["options"])
    assert config() == before
    assert secrets.read("one", "cifs", "password") == "s3cret"
    defining.update("one", {"content": "iso", "nodes": paths.node()})
    assert "content iso" in config()


def test_what_is_switched_off_or_elsewhere_need_not_work(root: Path) -> None:
    defining.add("off", "nfs", {**NFS, "disable": "1"})
    defining.add("away", "nfs", {**NFS, "nodes": "other"})
    defining.update("off", {"options": "port=10"})
    assert "options port=10" in config()


def test_others_are_defined_while_one_is_still_tried(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 6.0)
    with listening(None) as port:
        trying = threading.Thread(target=_tried, args=(port,))
        trying.start()
        defining.add("other", "dir", {"path": f"{root}/other", "content": "iso"})
        assert trying.is_alive()
        trying.join(30)
    assert list(definition.load().ids()) == ["other"]


def _tried(port: int) -> None:
    with pytest.raises(PveError, match="no answer within 6 seconds"):
        defining.add("one", "nfs", {**NFS, "options": f"port={port}"})


def test_names_are_used_once(root: Path) -> None:
    defining.add("one", "dir", {"path": f"{root}/one"})
    with pytest.raises(Exists, match="'one' is already defined"):
        defining.add("one", "dir", {"path": f"{root}/two"})
    assert not (root / "two").exists()


def test_a_storage_that_another_one_lies_on_stays(root: Path) -> None:
    paths.storage_config().write_text(
        "iscsi: san\n\tportal 10.0.0.1\n\ttarget iqn.2020-01.org.x:y\n\n"
        "lvm: vols\n\tvgname vg\n\tbase san:0.0.1.scsi-36001405\n"
    )
    with pytest.raises(Refused, match=r"storage 'san' can't be removed: storage 'vols' lies on its volume 'san:0\.0"):
        defining.remove("san")
    with pytest.raises(NotFound):
        defining.remove("sa")


def test_removing_goes_on_where_deactivating_does_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.storage_config().write_text("iscsi: one\n\tportal 127.0.0.1\n\ttarget x/y\n")
    lines: list[str] = []
    with log.sink(lines.append):
        defining.remove("one")
    assert config() == ""
    assert len(lines) == 1
    assert lines[0].startswith("WARN: storage 'one': value 'x/y' of option 'target' does not look like the name of an")


@pytest.mark.parametrize(
    "section",
    [
        "cifs: one\n\tserver a\n\tshare b\n\tusername me\n",  # without its password
        "cifs: one\n\tserver a\n\tshare b\n\tusername x,y\n",
        "cifs: one\n\tserver a\n\tshare b\n\toptions pass=x\n",
        "nfs: one\n\tserver a\n\texport /b\n\toptions bg\n",
        "cephfs: one\n\tmonhost 10.0.0.1\n\toptions secret=x\n",
    ],
)
def test_what_cannot_be_mounted_can_be_let_go(root: Path, section: str) -> None:
    paths.storage_config().write_text(section)
    lines: list[str] = []
    with log.sink(lines.append):
        defining.remove("one")
    assert (config(), lines) == ("", [])


def test_a_new_storage_takes_over_no_password_of_an_old_one(root: Path) -> None:
    """Of one whose removal was killed."""
    wanted = {key: text for key, text in CIFS.items() if key != "password"}
    secrets.write("one", "cifs", {"password": "old"})
    with pytest.raises(PveError, match=r"storage 'one': user 'me' has no password \(option password\)"):
        defining.add("one", "cifs", wanted)
    defining.add("one", "cifs", {**wanted, "disable": "1"})
    assert secrets.read("one", "cifs", "password") is None
    secrets.write("two", "rbd", {"keyring": "by hand"})
    defining.add("two", "rbd", {"pool": "p", "disable": "1"})
    assert secrets.read("two", "rbd", "keyring") == "by hand"


def test_a_digest_is_older_than_the_data_that_it_comes_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody changes in between is then seen, or a later change is refused."""
    defining.add("one", "nfs", {**NFS, "disable": "1"})
    before, get = definition.load().digest, definition.get

    def changed(name: str) -> definition.Definition:
        found = get(name)
        defining.update("one", {"content": "iso"})
        return found

    tree.load("storage")
    monkeypatch.setattr(definition, "get", changed)
    assert tree.call(tree.ROWS["GET", "/storage/{storage}"], {"storage": "one"})["digest"] == before


def test_what_lies_on_a_server_is_shared_by_all_nodes(root: Path) -> None:
    paths.storage_config().write_text(
        "nfs: one\n\tserver a\n\texport /x\n\tpath /mnt/pve/one\n\tdisable\n\n"
        "dir: two\n\tpath /two\n\n"
        "lvm: three\n\tvgname vg\n\tshared 1\n"
    )
    rows = tree.call(tree.ROWS["GET", "/nodes/{node}/storage"], {"node": "localhost"})
    assert {row["storage"]: row["shared"] for row in rows} == {"local": 0, "one": 1, "two": 0, "three": 1}
    assert tree.call(tree.ROWS["GET", "/storage/{storage}"], {"storage": "one"})["shared"] == 1


def test_unknown_types_and_options_are_told(root: Path) -> None:
    with pytest.raises(ParamErrors, match="type: value 'fancy' does not have a value in the enumeration"):
        defining.add("one", "fancy", {})
    with pytest.raises(ParamErrors, match="export: property is missing and it is not optional"):
        defining.add("one", "nfs", {"server": "a"})
    with pytest.raises(ParamErrors, match="subdir: unexpected property for storage type 'nfs'"):
        defining.add("one", "nfs", {**NFS, "subdir": "/x"})


def test_a_foreign_mount_at_the_place_is_not_taken_for_the_own_one(root: Path) -> None:
    wanted = mounts.Wanted(Path("/proc"), "10.0.0.1:/srv", "nfs")
    with pytest.raises(
        Refused, match=r"storage 'one': '/proc' is the mount of 'proc' \(proc\), not of '10\.0\.0\.1:/srv'"
    ):
        mounts.attach("one", wanted)
    mounts.detach("one", wanted)
    assert mounts.at(Path("/proc"))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"content": "none,images"}, "content: 'none' can't be combined with other content types"),
        ({"content": ""}, "content: the value must not be empty"),
        ({"nodes": ","}, "nodes: the value must not be empty"),
        ({"prune-backups": "keep-all=1,keep-last=2"},
         r"prune-backups: keep-all cannot be set together with other options"),
        ({"content": "iso,vztmpl", "content-dirs": "iso=x,vztmpl=/x/"},
         "content-dirs: 'iso' and 'vztmpl' would share the folder 'x'"),
        ({"content": "iso,vztmpl", "content-dirs": "iso=template/cache"},
         "content-dirs: 'iso' and 'vztmpl' would share the folder 'template/cache'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_and_makes_no_folder(root: Path, raw: dict[str, str], sentence: str) -> None:
    with pytest.raises(ParamErrors, match=sentence):
        defining.add("one", "dir", {"path": str(root / "one"), **raw})
    assert not (root / "one").exists()
    defining.add("two", "dir", {"path": str(root / "two")})
    before = paths.storage_config().read_text()
    with pytest.raises(ParamErrors, match=sentence):
        defining.update("two", raw)
    assert paths.storage_config().read_text() == before


def test_content_types_that_are_not_used_may_share_a_folder(root: Path) -> None:
    defining.add("one", "dir", {"path": str(root), "content": "iso", "content-dirs": "iso=x,vztmpl=x"})


def test_a_hand_written_shared_folder_is_not_used(root: Path) -> None:
    paths.storage_config().write_text(f"dir: one\n\tpath {root}\n\tcontent iso,vztmpl\n\tcontent-dirs iso=x,vztmpl=x\n")
    with pytest.raises(PveError, match="unable to activate storage 'one' - content-dirs: 'iso' and"):
        registry.driver(definition.get("one")).activate()


@pytest.mark.parametrize("raw", [{"preallocation": "off"}, {}])
def test_a_damaged_value_can_be_mended(root: Path, raw: dict[str, str]) -> None:
    paths.storage_config().write_text(f"dir: one\n\tpath {root}\n\tcontent images\n\tpreallocation foo\n")
    with pytest.raises(ParamErrors, match="preallocation: value 'foo'"):
        defining.update("one", {"disable": "1"})
    defining.update("one", raw, () if raw else ("preallocation",))
    assert definition.get("one").content == {"images"}
    assert "foo" not in paths.storage_config().read_text()


def test_storages_of_another_node_are_those_that_are_shared_with_it(root: Path) -> None:
    here = paths.node()
    paths.storage_config().write_text(
        "nfs: everywhere\n\tserver 127.0.0.1\n\texport /x\n\tpath /mnt/pve/one\n\n"
        f"nfs: here\n\tserver 127.0.0.1\n\texport /x\n\tpath /mnt/pve/two\n\tnodes {here}\n\n"
        "nfs: off\n\tserver 127.0.0.1\n\texport /x\n\tpath /mnt/pve/three\n\tdisable\n\n"
        f"dir: plain\n\tpath {root}\n"
    )

    def shown(**params: str) -> set[str]:
        rows = tree.call(tree.ROWS["GET", "/nodes/{node}/storage"], {"node": "localhost", **params})
        return {row["storage"] for row in rows}

    assert shown(target="other") == {"everywhere"}
    assert shown(target="localhost") == shown(target=here) == shown() == {"everywhere", "here", "off", "plain", "local"}


def test_numbers_of_a_definition_are_numbers(root: Path) -> None:
    paths.storage_config().write_text(
        f"dir: one\n\tpath {root}\n\tdisable\n\tshared 0\n\tmax-protected-backups -1\n\tcontent none\n"
    )
    shown = tree.call(tree.ROWS["GET", "/storage/{storage}"], {"storage": "one"})
    assert {key: shown[key] for key in ("disable", "shared", "max-protected-backups", "content", "path")} == {
        "disable": 1, "shared": 0, "max-protected-backups": -1, "content": "none", "path": str(root),
    }  # fmt: skip
    (row,) = tree.call(tree.ROWS["GET", "/nodes/{node}/storage"], {"node": "localhost", "storage": "one"})
    assert row["content"] == "none"
