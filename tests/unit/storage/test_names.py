"""Volume ids and volume names."""

from __future__ import annotations

import os.path
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvetools.options.storage import StorageOptions
from pvetools.storage import names
from pvetools.storage.backends.dir import Directory
from pvetools.storage.definition import FOLDERS, Definition
from pvetools.system.errors import PveError


@pytest.mark.parametrize("volid", ["", "local", "local:", ":x", "l:x", "lo cal:x", "-a:x", "local:a\nb", "local:a\0"])
def test_malformed_volume_ids_are_refused(volid: str) -> None:
    with pytest.raises(PveError, match="unable to parse volume ID"):
        names.split(volid)


@pytest.mark.parametrize(
    "name",
    [
        "100/../101/vm-101-disk-0.raw",
        "../etc/passwd",
        "100/..",
        "100/.",
        "iso/../../etc/passwd.iso",
        "iso/..",
        "snippets/..",
        "snippets/.",
        "snippets/a/b",
        "snippets/",
        "import/../x.ova",
        "import/x.ova/../disk.vmdk",
        "backup/../vzdump-lxc-100-2020_03_30-21_12_40.tar",
        "backup/a/b.tar",
        "vztmpl//a.tar.gz",
        "100/a/b.raw",
        "100/base-1-disk-0.raw/../vm-1-disk-0.raw",
        "100/.hidden.raw",
        "100/vm-100 disk.raw",
        "0100/vm-100-disk-0.raw",
        "100/vm-100-disk-0",
        "100/vm-100-disk-0.exe",
        "/etc/passwd",
        "100/vm-100\x07.raw",
        "iso/a\nb.iso",
        "rootdir/abc",
        "unknown/x.raw",
        "",
    ],
)
def test_names_that_lead_elsewhere_or_are_malformed_are_refused(name: str) -> None:
    with pytest.raises(PveError, match="unable to parse"):
        names.parse(name)


def test_a_disk_inside_an_ova_is_told_apart() -> None:
    assert names.parse("import/my box.ova/disk 1.vmdk").format == "ova+vmdk"
    assert names.parse("import/box.ova").format == "ova"


PARTS = st.sampled_from(
    [
        *("100", "iso", "backup", "import", "snippets", "rootdir", "vztmpl", "/", "/", "..", ".", "vm-100-disk-0.raw"),
        *(
            "base-1",
            ".qcow2",
            ".iso",
            "a.ova",
            "x.tar.gz",
            "\0",
            " ",
            "~",
            "vzdump-lxc-100-2020_03_30-21_12_40.tar",
            "é",
        ),
    ]
)
DRIVER = Directory(Definition("here", "dir", StorageOptions.read({"storage": "here", "type": "dir", "path": "/base"})))


@given(st.lists(PARTS | st.text(max_size=3), max_size=8).map("".join))
def test_every_accepted_name_lies_in_its_folder(name: str) -> None:
    try:
        parsed = names.parse(name)
        path = DRIVER.path(name)
    except PveError:
        return
    folder = f"/base/{FOLDERS[parsed.content]}"
    assert str(path).startswith(folder + "/")
    assert os.path.normpath(path) == str(path)
    if parsed.content == "images":
        assert path.parent == Path(folder) / str(parsed.vmid)
    elif "+" not in parsed.format:
        assert path.parent == Path(folder)
        assert DRIVER.name_of(path) == name
