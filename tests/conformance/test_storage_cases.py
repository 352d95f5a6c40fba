"""Public cases of directory storages and of backup archive names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pvetools.backup import names as archives
from pvetools.config import guest
from pvetools.options.storage import StorageOptions
from pvetools.storage import names, volumes
from pvetools.storage.backends.dir import Directory
from pvetools.storage.definition import FOLDERS, Definition
from pvetools.system import paths, run
from pvetools.system.errors import PveError
from tests.conformance import loader

SIZE, USED, CHANGED = 131072, 262144, 1234567890


def _directory(path: str | None, **more: Any) -> Directory:
    raw = {"storage": "local", "type": "dir", **({"path": path} if path else {}), **more}
    return Directory(Definition("local", "dir", StorageOptions.read(raw)))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Storage ``local`` in a scratch directory with all content types."""
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path / "root"))
    file = paths.storage_config()
    file.parent.mkdir(parents=True)
    file.write_text(f"dir: local\n\tpath {tmp_path}/s\n\tcontent backup,images,import,iso,rootdir,snippets,vztmpl\n")
    return tmp_path / "s"


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _make(path: Path, *, folder: bool, backing: str = "") -> None:
    """A file or a folder with the size that all cases expect; images get real headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.removeprefix(".")
    if folder:
        path.mkdir()
    elif form in ("qcow2", "vmdk"):
        extra = ["-u", "-F", "qcow2", "-b", backing] if backing else []
        run.run(["qemu-img", "create", "-q", "-f", form, *extra, path, str(SIZE)])
    else:
        path.write_bytes(b"")
        os.truncate(path, SIZE)


def _error(case: dict[str, Any]) -> str:
    return str(case["expected"]).rstrip("\n")


@pytest.mark.parametrize("case", loader.table("storage/parse_volname")[0])
def test_volume_names(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], str):
        with pytest.raises(PveError) as caught:
            names.parse(case["volname"])
        assert str(caught.value) == _error(case)
        return
    found = names.parse(case["volname"])
    vmid = None if found.vmid is None else str(found.vmid)
    base_vmid = None if found.base_vmid is None else str(found.base_vmid)
    expected = [value if value is None else str(value) for value in case["expected"]]
    expected += [None] * (7 - len(expected))
    got = [found.content, found.name, vmid, found.base or None, base_vmid, "base-" if found.is_base else None]
    form = None if found.content == "rootdir" else found.format  # old folders of containers: a format is ours
    assert [*got, form] == expected


@pytest.mark.parametrize("case", loader.table("storage/path_to_volume_id")[0])
def test_volume_ids_of_paths(case: dict[str, Any], storage: Path) -> None:
    text = case["volname"].replace("@DIR@", str(storage))
    path = Path(text.rstrip("/"))
    _make(path, folder=text.endswith("/"))
    volid = volumes.volume_id(path)
    assert ([volumes.parse(volid).content, volid] if volid else [""]) == case["expected"]


FILE_PATHS, FILE_PATHS_AT = loader.table("storage/filesystem_path")


@pytest.mark.parametrize("case", FILE_PATHS)
def test_paths_of_volumes(case: dict[str, Any]) -> None:
    driver = _directory(FILE_PATHS_AT["path"])
    if isinstance(case["expected"], str):
        with pytest.raises(PveError) as caught:
            driver.path(case["volname"], case["snapname"] or "")
        assert str(caught.value) == _error(case)
        return
    parsed = driver.parse(case["volname"])
    path = driver.path(case["volname"], case["snapname"] or "")
    assert [str(path), str(parsed.vmid), parsed.content] == [str(value) for value in case["expected"]]


@pytest.mark.parametrize("case", loader.table("storage/get_subdir")[0])
def test_folders_of_content_types(case: dict[str, Any]) -> None:
    given = dict(case["storage"])
    overrides = ",".join(f"{content}={path}" for content, path in given.pop("content-dirs", {}).items())
    driver = _directory(given.get("path"), **({"content-dirs": overrides} if overrides else {}))
    if not given or case["content_type"] not in FOLDERS:
        with pytest.raises(PveError) as caught:
            driver.directory(case["content_type"])
        assert str(caught.value) == _error(case)
        return
    assert str(driver.directory(case["content_type"])) == case["expected"]


LISTINGS, LISTINGS_AT = loader.table("storage/list_volumes")


def _listed(volume: volumes.Volume, expected: dict[str, Any]) -> dict[str, Any]:
    """A row as the cases have it: all files have one size and one time there; ours have the real ones."""
    row = {key: str(value) for key, value in volume.as_data().items()}
    assert volume.format == "subvol" or volume.size == SIZE
    row["size"] = str(SIZE)
    if "used" in row:
        row["used"] = str(USED)
    if str(expected.get("ctime")) == str(CHANGED):
        row["ctime"] = str(CHANGED)
    return row


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize("case", LISTINGS)
def test_listings(case: dict[str, Any], storage: Path) -> None:
    for vmid, entry in LISTINGS_AT["vmlist"].items():
        file = paths.guest_config(entry["type"], int(vmid), entry["node"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    parents = list(case.get("parent") or [])
    for text in case["files"]:
        path = Path(text.replace("@DIR@", str(storage)).rstrip("/"))
        image = path.suffix in (".qcow2", ".vmdk", ".raw", ".subvol")
        _make(path, folder=text.endswith("/"), backing=(parents.pop(0) or "") if image and parents else "")
    assert guest.cluster_guests()
    found = volumes.list_volumes("local", vmid=int(case["vmid"]) if case["vmid"] else None)
    expected = [{key: str(v) for key, v in row.items() if v is not None} for row in case["expected"]]
    assert [_listed(row, expected[number]) for number, row in enumerate(found[: len(expected)])] == expected
    assert len(found) == len(expected)


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize("case", loader.table("storage/archive_info")[0])
def test_archive_names(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], str):
        with pytest.raises(PveError) as caught:
            archives.parse(case["archive"])
        assert f"ERROR: {caught.value}" == _error(case)
        return
    info = archives.parse(case["archive"])
    got = {
        "compression": info.compression or None,
        "ctime": info.ctime,
        "decompressor": archives.decompressor(info) or None,
        "filename": info.filename,
        "format": info.format,
        "is_std_name": int(info.standard),
        "logfilename": info.log,
        "notesfilename": info.notes,
        "type": info.kind,
        "vmid": info.vmid,
    }
    assert {key: value for key, value in got.items() if value is not None} == {
        key: value for key, value in case["expected"].items() if value is not None
    }
