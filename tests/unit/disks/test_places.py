"""Mount units, sizes of thin pools, storages that are defined together with their place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.storage import definition, mounts, volumegroups
from pvetools.storage.disks import directory, groups, pools, storages
from pvetools.system import paths, run
from pvetools.system.errors import Exists, ParamErrors, Refused
from pvetools.system.units import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/mnt/pve/data", "mnt-pve-data"),
        ("/mnt/pve/my-data.2_x", r"mnt-pve-my\x2ddata.2_x"),
        ("//mnt//x/", "mnt-x"),
        ("/.hidden", r"\x2ehidden"),
        ("/mnt/ä b", r"mnt-\xc3\xa4\x20b"),
    ],
)
def test_names_of_units(path: str, unit: str) -> None:
    assert directory.escape(path) == unit


def test_a_unit_is_read_as_it_was_written() -> None:
    text = directory.unit_text("data", "/dev/disk/by-uuid/1", Path("/mnt/pve/data"), "xfs")
    assert directory.parse_unit(text) == {
        "Options": "defaults", "Type": "xfs", "What": "/dev/disk/by-uuid/1", "Where": "/mnt/pve/data",
    }  # fmt: skip
    assert directory.parse_unit("# What=x\n[Unit]\nWhat=a\n[Mount]\n;What=b\nWhat = c\n") == {"What": "c"}


@given(st.text())
def test_no_unit_breaks_the_list(text: str) -> None:
    directory.parse_unit(text)


@given(st.integers(0, 1 << 50))
def test_a_thin_pool_fits_into_its_group(free: int) -> None:
    try:
        data, metadata = groups.thin_sizes(free)
    except Refused:
        assert free < 3 * GIB + groups.SPARE + 4 * KIB
        return
    assert data + 2 * metadata <= free - groups.SPARE
    assert data >= GIB
    assert GIB <= metadata <= 16 * GIB
    assert data % KIB == metadata % KIB == 0


def test_sizes_of_thin_pools() -> None:
    assert groups.thin_sizes(6 * GIB) == (6 * GIB - 128 * MIB - 2 * GIB, GIB)
    row = {"lv_name": "data", "vg_name": "pve", "lv_size": "1000", "data_percent": "12.50", "lv_metadata_size": "200",
           "metadata_percent": ""}  # fmt: skip
    assert groups.pool_of(row) == {
        "lv": "data", "vg": "pve", "lv_size": 1000, "used": 125, "metadata_size": 200, "metadata_used": 0,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.ensure_tree()
    return tmp_path


def configured(text: str) -> None:
    paths.storage_config().write_text(text)


def on_vg(found: definition.Definition) -> bool:
    return found.options.vgname == "data"


def test_what_is_wrong_with_a_storage_is_told_before_anything_is_made(root: Path) -> None:
    with pytest.raises(ParamErrors):
        storages.New("data", "lvm", {"vgname": "/"})
    configured("dir: data\n\tpath /x\n")
    with pytest.raises(Exists, match="storage 'data' exists already"):
        storages.New("data", "lvm", {"vgname": "data"})


def test_a_storage_of_another_node_is_joined(root: Path) -> None:
    configured("lvm: data\n\tvgname data\n\tnodes other\n")
    storages.New("data", "lvm", {"vgname": "data", "content": "images"}).add()
    assert definition.get("data").options.nodes == ["other", paths.node()]
    with pytest.raises(Exists):
        storages.New("data", "lvm", {"vgname": "data", "content": "images"})


def test_storages_are_removed_here_and_stay_for_other_nodes(root: Path) -> None:
    node = paths.node()
    configured(
        f"lvm: here\n\tvgname data\n\tnodes {node}\n\nlvm: both\n\tvgname data\n\tnodes {node},other\n\n"
        "lvm: elsewhere\n\tvgname data\n\tnodes other\n\nlvm: apart\n\tvgname more\n"
    )
    storages.forget(on_vg)
    assert [*definition.load().ids()] == ["both", "elsewhere", "apart"]
    assert definition.get("both").options.nodes == ["other"]


def test_what_guests_have_disks_on_is_not_destroyed(root: Path) -> None:
    configured("lvm: store\n\tvgname data\n\nlvm: apart\n\tvgname more\n")
    (paths.guest_dir("qemu") / "100.conf").write_text(
        "scsi0: apart:vm-100-disk-0,size=1G\nunused0: store:vm-100-disk-1\n"
    )
    storages.require_unused(on_vg)
    (paths.guest_dir("lxc") / "101.conf").write_text("mp0: volume=store:vm-101-disk-0,mp=/x\n")
    with pytest.raises(Refused, match=r"volume 'store:vm-101-disk-0' belongs to CT 101 \(mp0\)"):
        storages.require_unused(on_vg)


@pytest.mark.parametrize(
    "line",
    ["scsi0:  store:vm-100-disk-0", "scsi0:store:vm-100-disk-0 ", "scsi0: /dev/data/vm-100-disk-0",
     "scsi0: /dev/mapper/data-vm--100--disk--0", "scsi0: broken:vm-100-disk-0"],
)  # fmt: skip
def test_disks_count_in_whatever_way_guests_name_them(root: Path, line: str) -> None:
    configured("lvm: store\n\tvgname data\n\nlvm: broken\n\tvgname data\n\tcontent foo\n")
    (paths.guest_dir("qemu") / "100.conf").write_text(f"memory: 64\n{line}\n")
    with pytest.raises(Refused, match=r"belongs to VM 100 \(scsi0\)"):
        storages.require_unused(on_vg, below=volumegroups.starts("data"))
    (paths.guest_dir("qemu") / "100.conf").write_text("scsi0: /dev/data2/vm-100-disk-0\nunused0: store:vm-100-disk-0\n")
    storages.require_unused(on_vg, below=volumegroups.starts("data"))


def test_guests_of_other_nodes_count_where_the_storage_is_shared(root: Path) -> None:
    folder = paths.guest_dir("qemu", "other")
    folder.mkdir(parents=True)
    (folder / "200.conf").write_text("scsi0: store:vm-200-disk-0,size=1G\n")
    configured("lvm: store\n\tvgname data\n")
    storages.require_unused(on_vg)
    configured("lvm: store\n\tvgname data\n\tshared 1\n")
    with pytest.raises(Refused, match=r"volume 'store:vm-200-disk-0' belongs to VM 200 of node 'other' \(scsi0\)"):
        storages.require_unused(on_vg)


@pytest.mark.parametrize(
    ("place", "inside"), [("", True), ("/below/it", True), ("/x/../../data/", True), ("2", False), ("/..", False)]
)
def test_a_storage_anywhere_below_a_mount_point_lies_on_it(root: Path, place: str, inside: bool) -> None:
    point = root / "mnt/data"
    configured(f"dir: store\n\tpath {point}{place}\n")
    (paths.guest_dir("qemu") / "100.conf").write_text("scsi0: store:100/vm-100-disk-0.raw\n")
    if inside:
        with pytest.raises(Refused, match="belongs to VM 100"):
            storages.require_unused(directory.lies_in(point))
    else:
        storages.require_unused(directory.lies_in(point))


def test_a_storage_behind_a_link_into_a_mount_point_lies_on_it(root: Path) -> None:
    point = root / "mnt/data"
    (point / "below").mkdir(parents=True)
    (root / "link").symlink_to(point / "below")
    configured(f"dir: store\n\tpath {root}/link\n")
    assert [found.id for found in storages.matching(directory.lies_in(point))] == ["store"]


def test_directories_on_a_pool_keep_it_as_long_as_guests_have_disks_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = run.Completed("tank\t9\t1\t8\t0\t1.00\tONLINE\n", "", 0)
    monkeypatch.setattr(run, "run", lambda *_, **__: listed)
    mounted = mounts.Mount(f"{root}/tank/vm", "tank/vm", "zfs", "", "", "/")
    monkeypatch.setattr(pools.mounts, "every", lambda: [mounted])
    configured(f"dir: d\n\tpath {root}/tank/vm/images\n")
    config = paths.guest_config("qemu", 100)
    for line in ("d:100/vm-100-disk-0.raw", f"{root}/tank/vm/x.raw", "/dev/zvol/tank/vm-100-disk-0"):
        config.write_text(f"scsi0: {line}\n")
        with pytest.raises(Refused, match=r"belongs to VM 100 \(scsi0\)"):
            pools.destroy("tank")
