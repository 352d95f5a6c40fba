"""Guest configuration files: reading, canonical writing, creating, locking."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.config import guest
from pvetools.system import paths
from pvetools.system.errors import ConfigError, DigestMismatch, Exists, Locked, NotFound, PveError

VM = """# first line
#second %3A line
boot: order=scsi0
memory: 512
x-unknown-key: kept as it is

[PENDING]
delete: cores
memory: 1024

[special:cloudinit]
name: old

[special:fleecing]
fleecing-images: local:1

[snap1]
#about it
memory: 256
snaptime: 1737548747

[special:from-the-future]
whatever it holds
"""

CT = """hostname: ct
memory: 512
lxc.cap.drop: sys_time
lxc.cap.drop = mac_admin
lxc.mount.entry: /a b none bind 0 0

[pve:pending]
swap: 0

[before]
hostname: old
lxc.cap.drop: sys_nice
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    for kind in ("qemu", "lxc"):
        paths.guest_dir(kind).mkdir(parents=True)
    return tmp_path


def put(kind: str, vmid: int, text: str) -> Path:
    path = paths.guest_config(kind, vmid)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_all_parts_of_a_vm_file_are_told_apart(root: Path) -> None:
    put("qemu", 100, VM)
    config = guest.load("qemu", 100)
    assert config.current == {
        "description": " first line\nsecond : line\n",
        "boot": "order=scsi0",
        "memory": "512",
        "x-unknown-key": "kept as it is",
    }
    assert config.pending == {"delete": "cores", "memory": "1024"}
    assert config.special == {"cloudinit": {"name": "old"}, "fleecing": {"fleecing-images": "local:1"}}
    assert config.snapshots == {"snap1": {"description": "about it\n", "memory": "256", "snaptime": "1737548747"}}
    assert config.digest == hashlib.sha1(VM.encode()).hexdigest()
    assert not config.problems


def test_raw_lines_of_a_container_keep_order_and_repetitions(root: Path) -> None:
    put("lxc", 101, CT)
    config = guest.load("lxc", 101)
    assert config.lxc == [
        ("lxc.cap.drop", "sys_time"),
        ("lxc.cap.drop", "mac_admin"),
        ("lxc.mount.entry", "/a b none bind 0 0"),
    ]
    assert config.pending == {"swap": "0"}
    assert config.snapshots["before"].lxc == [("lxc.cap.drop", "sys_nice")]
    config.lxc.append(("lxc.mount.entry", "/c d none bind 0 0"))
    assert config.touched()
    assert "lxc.mount.entry: /c d none bind 0 0\n" in config.canonical()


@pytest.mark.parametrize("text", [VM, CT, "b: 1\na: 2\n\n\n", "name: x\r\nmemory: 5\r\n", "a: 1", "", "name: \udcff\n"])
def test_an_untouched_file_is_written_back_byte_for_byte(root: Path, text: str) -> None:
    path = put("lxc", 101, text)
    config = guest.load("lxc", 101)
    assert config.text() == text
    guest.save(config)
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_changed_file_is_sorted_and_keeps_what_is_unknown(root: Path) -> None:
    path = put("qemu", 100, VM)
    config = guest.load("qemu", 100)
    config.current["agent"] = "1"
    del config.pending["delete"]
    guest.save(config)
    assert path.read_text() == (
        "# first line\n#second %3A line\nagent: 1\nboot: order=scsi0\nmemory: 512\nx-unknown-key: kept as it is\n"
        "\n[PENDING]\nmemory: 1024\n\n[special:cloudinit]\nname: old\n\n[special:fleecing]\nfleecing-images: local:1\n"
        "\n[special:from-the-future]\nwhatever it holds\n\n[snap1]\n#about it\nmemory: 256\nsnaptime: 1737548747\n"
    )
    assert oct(path.stat().st_mode & 0o777) == "0o640"
    assert config.digest == hashlib.sha1(path.read_bytes()).hexdigest()
    assert not config.touched()
    assert list(path.parent.iterdir()) == [path]


def test_saving_notices_a_change_by_someone_else(root: Path) -> None:
    path = put("qemu", 100, VM)
    config = guest.load("qemu", 100)
    path.write_text("memory: 1\n")
    config.current["memory"] = "2"
    with pytest.raises(DigestMismatch):
        guest.save(config)
    assert path.read_text() == "memory: 1\n"
    path.unlink()
    with pytest.raises(DigestMismatch):
        guest.save(config)
    assert not path.exists()


def test_a_digest_from_the_user_is_compared(root: Path) -> None:
    put("qemu", 100, VM)
    config = guest.load("qemu", 100)
    guest.check_digest(config, config.digest)
    guest.check_digest(config, None)
    guest.check_digest(config, "")
    with pytest.raises(DigestMismatch):
        guest.check_digest(config, "0" * 40)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("memory: 1\nfoo bar\n", 2, "unable to parse config: foo bar"),
        ("memory: 1\nname:\n", 2, "unable to parse config: name:"),
        ("memory: 1\n\n[snap1\nmemory: 2\n", 3, r"unable to parse config: \[snap1"),
        ("delete: cores\n", 1, "property 'delete' is only allowed in"),
        ("[ab]\nm: 1\n[ab]\nm: 2\n", 3, "duplicate section: ab"),
        ("[PENDING]\nm: 1\n[pending]\nm: 2\n", 3, "duplicate section: pending"),
    ],
)
def test_a_damaged_line_is_reported_with_its_place(root: Path, text: str, line: int, reason: str) -> None:
    path = put("qemu", 100, text)
    with pytest.raises(ConfigError, match=f"{path} line {line}: {reason}"):
        guest.parse("qemu", 100, text, strict=True)
    config = guest.load("qemu", 100)
    assert [problem.line for problem in config.problems] == [line]
    assert config.text() == text
    config.current["memory"] = "77"
    with pytest.raises(ConfigError, match=f"line {line}: .*mend the file first"):
        guest.save(config)
    assert path.read_text() == text


def test_the_old_name_of_the_cdrom_drive_is_read_as_ide2() -> None:
    text = "cdrom: local:iso/a.iso\nmemory: 64\n"
    config = guest.parse("qemu", 100, text)
    assert config.current == {"ide2": "local:iso/a.iso", "memory": "64"}
    assert config.text() == text
    assert guest.parse("qemu", 100, "cdrom: none\nide2: cdrom\n").current == {"cdrom": "none", "ide2": "cdrom"}


def test_keys_below_a_damaged_header_do_not_leak_into_another_part() -> None:
    config = guest.parse("qemu", 100, "memory: 1\n[snap1 ]x\nmemory: 2\n")
    assert config.current == {"memory": "1"}
    assert config.snapshots == {}


@pytest.mark.parametrize("value", ["", " ", "a\nb"])
def test_values_that_a_file_cannot_hold_are_refused(root: Path, value: str) -> None:
    path = put("qemu", 100, "memory: 1\n")
    config = guest.load("qemu", 100)
    config.current["name"] = value
    with pytest.raises(PveError, match="'name'"):
        guest.save(config)
    assert path.read_text() == "memory: 1\n"


def test_a_pending_removal_of_the_description_survives(root: Path) -> None:
    put("qemu", 100, "memory: 1\n")
    config = guest.load("qemu", 100)
    config.pending["description"] = ""
    guest.save(config)
    assert "description" in guest.load("qemu", 100).pending


def test_create_makes_the_file_and_refuses_used_ids_everywhere(root: Path) -> None:
    config = guest.create("lxc", 200, {"hostname": "ct"}, [("lxc.cap.drop", "x")])
    assert paths.guest_config("lxc", 200).read_text() == "hostname: ct\nlxc.cap.drop: x\n"
    config.current["memory"] = "1"
    guest.save(config)
    elsewhere = paths.guest_config("qemu", 300, "other-node")
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text("memory: 1\n")
    for vmid, word in ((200, "CT"), (300, "VM")):
        for kind in ("qemu", "lxc"):
            with pytest.raises(Exists, match=f"unable to create guest {vmid}: {word} {vmid} already exists"):
                guest.create(kind, vmid, {})
    assert guest.all_guests() == {200: "lxc"}
    assert guest.cluster_guests() == {200: (paths.node(), "lxc"), 300: ("other-node", "qemu")}


def test_create_never_replaces_a_file_that_appears_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("qemu", 100, "memory: 1\n")
    monkeypatch.setattr(guest, "check_unused", lambda _: None)
    with pytest.raises(Exists):
        guest.create("qemu", 100, {"memory": "2"})
    assert paths.guest_config("qemu", 100).read_text() == "memory: 1\n"
    assert list(paths.guest_dir("qemu").iterdir()) == [paths.guest_config("qemu", 100)]


def test_missing_guests_are_named_and_the_right_tool_is_told(root: Path) -> None:
    put("lxc", 101, CT)
    with pytest.raises(NotFound, match=r"nodes/.*/qemu-server/100.conf' does not exist$"):
        guest.load("qemu", 100)
    with pytest.raises(NotFound, match="guest 101 is a container: use pct"):
        guest.load("qemu", 101)
    with pytest.raises(NotFound):
        guest.remove("qemu", 101)
    guest.remove("lxc", 101)
    assert guest.kind_of(101) is None


def test_listing_ignores_files_that_are_no_guests(root: Path) -> None:
    for name in ("99.conf", "100.conf", "1000000000.conf", "100.conf.bak", ".101.conf.tmp.7", "abc.conf", "0100.conf"):
        (paths.guest_dir("qemu") / name).write_text("")
    put("lxc", 101, "")
    assert guest.all_guests() == {100: "qemu", 101: "lxc"}
    assert guest.kind_of(100) == "qemu"
    assert guest.all_guests("no-such-node") == {}


def test_quick_reads_the_current_part_only(root: Path) -> None:
    current = dict(guest.parse("qemu", 100, VM).current)
    del current["description"]
    assert guest.quick(put("qemu", 100, VM)) == current
    assert guest.quick(put("qemu", 100, "[snap]\nmemory: 1\n")) == {}
    assert guest.quick(put("qemu", 100, "")) == {}
    with pytest.raises(FileNotFoundError):
        guest.quick(paths.guest_config("qemu", 999))


def test_quick_reads_files_larger_than_one_block(root: Path) -> None:
    for size in (1 << 16, (1 << 16) - 8, 1 << 17, 200_000):
        text = "#" + "x" * (size - 2) + "\nlast: 1\n"
        assert guest.quick(put("qemu", 100, text)) == {"last": "1"}


def test_a_locked_guest_is_refused_with_the_command_that_unlocks(root: Path) -> None:
    put("qemu", 100, "lock: backup\n")
    put("lxc", 101, "lock: snapshot-delete\n")
    with pytest.raises(Locked, match=r"VM is locked \(backup\).*qm unlock 100"):
        guest.check_lock(guest.load("qemu", 100))
    with pytest.raises(Locked, match=r"CT is locked \(snapshot-delete\).*pct unlock 101"):
        guest.check_lock(guest.load("lxc", 101))
    guest.check_lock(guest.load("qemu", 100), "backup")
    guest.check_lock(guest.parse("qemu", 100, "memory: 1\n"))


KEYS = st.from_regex(r"[a-z][a-z_-]{0,8}[a-z][0-9]{0,2}", fullmatch=True).filter(
    lambda key: key not in ("delete", "description")
)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=20).filter(
    lambda value: value == value.strip(" \t\r\f\v") and value.strip()
)
SECTIONS = st.dictionaries(KEYS, VALUES, max_size=4)
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{1,10}", fullmatch=True).filter(lambda name: name != "pending")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40))
def test_any_description_line_survives_its_escaping(text: str) -> None:
    encoded = guest.encode_text(text)
    assert encoded.isascii()
    assert ":" not in encoded
    assert guest.decode_text(encoded) == text


@given(SECTIONS, SECTIONS, st.dictionaries(NAMES, SECTIONS, max_size=3), st.text(max_size=30))
def test_whatever_is_written_is_read_back(
    current: dict[str, str], pending: dict[str, str], snapshots: dict[str, dict[str, str]], description: str
) -> None:
    config = guest.GuestConfig("qemu", 100, Path("100.conf"))
    config.current.update(current)
    if description:
        config.current["description"] = description + "\n"
    config.pending.update(pending)
    config.snapshots.update({name: guest.Section(values) for name, values in snapshots.items()})
    text = config.canonical()
    again = guest.parse("qemu", 100, text, strict=True)
    assert (again.current, again.pending) == (config.current, config.pending)
    assert again.snapshots == config.snapshots
    assert again.canonical() == text


FRAGMENTS = [
    *(b"#", b"a: 1", b"[ab]", b"[PENDING]", b"[pve:pending]", b"[special:cloudinit]", b"[x y]", b"[", b"]", b"\n"),
    *(b"lxc.a: b", b"description: x%0Ay", b"delete: a", b" ", b"\r", b":", b"%3", b"\xff", b"[special:pending]", b"ab"),
]


@given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=5), max_size=25).map(b"".join))
def test_no_file_content_crashes_the_reader(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for kind in ("qemu", "lxc"):
        config = guest.parse(kind, 100, text)
        assert config.text().encode("utf-8", "surrogateescape") == data
        once = config.canonical()
        again = guest.parse(kind, 100, once)
        assert again.canonical() == once
        assert not again.problems
        assert again._content() == config._content()


def test_verify_names_a_wrong_value_with_its_place() -> None:
    text = "memory: 64\n[ab]\nmemory: 32\nnuma: maybe\n"
    with pytest.raises(
        ConfigError, match=r"100\.conf line 4: unable to parse value of 'numa' - type check \('boolean'"
    ):
        guest.verify(guest.parse("qemu", 100, text))
    config = guest.parse("qemu", 100, text)
    assert len(guest.verify(config, strict=False)) == 1
    assert config.snapshots == {"ab": {"memory": "32"}}


def test_verify_refuses_unknown_keys_and_parts_only_when_strict() -> None:
    for text, reason in (("foo: 1\n", "unknown setting 'foo'"), ("[a b]\n", "line 1: skipping unknown section: 'a b'")):
        with pytest.raises(ConfigError, match=reason):
            guest.verify(guest.parse("lxc", 100, text))
    config = guest.parse("lxc", 100, "foo: 1\n\n[a b]\nx: 1\n")
    assert [warning.split(": ", 1)[1] for warning in guest.verify(config, strict=False)] == [
        "skipping unknown section: 'a b'"
    ]
    assert config.canonical() == "foo: 1\n"


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_every_kind_of_lock_can_be_set_and_cleared(root: Path, kind: str) -> None:
    put(kind, 100, "memory: 64\n")
    expected = {"backup", "create", "migrate", "rollback", "snapshot", "snapshot-delete"}
    expected |= {"clone", "suspending", "suspended"} if kind == "qemu" else {"destroyed", "disk", "fstrim", "mounted"}
    assert set(guest.lock_kinds(kind)) == expected
    for name in expected:
        assert guest.set_lock(kind, 100, name).lock == name
        with pytest.raises(Locked, match=rf"locked \({name}\)"):
            guest.set_lock(kind, 100, "backup")
        assert not guest.clear_lock(kind, 100, "something-else")
        assert guest.clear_lock(kind, 100, name)
    assert not guest.clear_lock(kind, 100)
    with pytest.raises(ValueError, match="unknown lock 'tea-break'"):
        guest.set_lock(kind, 100, "tea-break")
    assert paths.guest_config(kind, 100).read_text() == "memory: 64\n"
