"""Disks and CD-ROM drives of a domain, and their controllers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pvetools.guest.qemu import buses, pci, remote
from pvetools.guest.qemu.build import Build, refuse
from pvetools.guest.qemu.element import Element
from pvetools.guest.qemu.place import Source
from pvetools.options.drive import Drive
from pvetools.system.errors import Refused

# scsihw -> libvirt's model of the controller
SCSI_MODELS = {
    "lsi": "lsilogic", "megasas": "lsisas1078", "pvscsi": "vmpvscsi", "virtio-scsi-pci": "virtio-scsi",
    "virtio-scsi-single": "virtio-scsi",
}  # fmt: skip
_MIB = 1 << 20
_CDROM_DEVICE = "/dev/cdrom"
_DIRECT = ("none", "directsync")  # cache modes without the host's page cache
# option -> (libvirt's name, factor)
THROTTLES: dict[str, tuple[str, int]] = {
    **{f"mbps{part}{peak}": (f"{name}_bytes_sec{peak}", _MIB)
       for part, name in (("", "total"), ("_rd", "read"), ("_wr", "write")) for peak in ("", "_max")},
    **{f"bps{part}": (f"{name}_bytes_sec", 1) for part, name in (("", "total"), ("_rd", "read"), ("_wr", "write"))},
    **{f"bps{part}_max_length": (f"{name}_bytes_sec_max_length", 1)
       for part, name in (("", "total"), ("_rd", "read"), ("_wr", "write"))},
    **{f"iops{part}{peak}": (f"{name}_iops_sec{peak}", 1)
       for part, name in (("", "total"), ("_rd", "read"), ("_wr", "write")) for peak in ("", "_max", "_max_length")},
}  # fmt: skip


def drives(build: Build) -> dict[str, Any]:
    """All drives by key, in the order in which they are attached; ``cdrom`` is another name of ``ide2``."""
    options = build.options
    families: dict[str, Mapping[int, Any]] = {
        "ide": options.ide, "sata": options.sata, "scsi": options.scsi, "virtio": options.virtio
    }  # fmt: skip
    found = {f"{family}{index}": drive for family, kept in families.items() for index, drive in sorted(kept.items())}
    if options.cdrom and "ide2" not in found:
        found["ide2"] = options.cdrom
    return found


def is_cdrom(drive: Drive) -> bool:
    """Whether a drive is a CD-ROM."""
    return drive.media == "cdrom" or drive.file in ("none", "cdrom")


def disks(build: Build) -> None:
    """Every drive, its controllers and threads."""
    scsihw = build.options.scsihw
    if scsihw not in SCSI_MODELS:
        raise refuse("scsihw", scsihw, f"choose one of {', '.join(SCSI_MODELS)}")
    found = drives(build)
    threads: dict[str, int] = {}
    for key, drive in found.items():
        if getattr(drive, "iothread", None):
            _claim_thread(build, key, threads)
    if threads:
        top = build.domain.add("iothreadids")
        for number in threads.values():
            top.add("iothread", id=number)
    _controllers(build, found, threads)
    for key, drive in found.items():
        _disk(build, key, drive, threads.get(key))


def _claim_thread(build: Build, key: str, threads: dict[str, int]) -> None:
    if not build.place.threads:
        build.warnings.append(f"{key}: iothread=1 has no effect: this host's QEMU would end at the end of a backup")
    elif key.startswith("virtio") or build.options.scsihw == "virtio-scsi-single":
        threads[key] = len(threads) + 1
    else:
        build.warnings.append(f"{key}: iothread=1 needs scsihw: virtio-scsi-single, the disk gets no thread of its own")


def _controllers(build: Build, found: Mapping[str, Drive], threads: Mapping[str, int]) -> None:
    units = {key: _unit(build, key) for key in found}
    if not build.q35:
        build.devices.add("controller", type="ide", index=0)
    else:
        build.devices.add("controller", type="sata", index=0)
    if any(key.startswith("sata") for key in found):
        ahci = build.devices.add("controller", type="sata", index=1 if build.q35 else 0)
        pci.place(ahci, "ahci0", q35=build.q35)
    for index in sorted({unit.controller for unit in units.values() if unit.bus == "scsi"}):
        _scsi_controller(build, index, found, threads)


def _scsi_controller(build: Build, index: int, found: Mapping[str, Any], threads: Mapping[str, int]) -> None:
    scsihw = build.options.scsihw
    single = scsihw == "virtio-scsi-single"
    controller = build.devices.add("controller", type="scsi", index=index, model=SCSI_MODELS[scsihw])
    thread = threads.get(f"scsi{index}") if single else None
    queues = _queues(build, index, found)
    if thread or queues:
        controller.add("driver", queues=queues, iothread=thread)
    pci.place(controller, f"{'virtioscsi' if single else 'scsihw'}{index}", q35=build.q35)


def _queues(build: Build, index: int, found: Mapping[str, Any]) -> int | None:
    """Request queues of a virtio-scsi controller: what its disks ask for."""
    if not build.options.scsihw.startswith("virtio"):
        return None
    wanted = [
        drive.queues
        for key, drive in found.items()
        if key.startswith("scsi") and drive.queues and _unit(build, key).controller == index
    ]
    return max(wanted, default=None)


def _unit(build: Build, key: str) -> buses.Unit:
    family, index = buses.split(key) or ("", 0)
    return buses.unit(family, index, build.options.scsihw, q35=build.q35)


def _disk(build: Build, key: str, drive: Any, thread: int | None) -> None:
    cdrom = is_cdrom(drive)
    source = _source(build, key, drive)
    disk = build.devices.add("disk", type=_type(source))
    disk.attributes["device"] = "cdrom" if cdrom else ("lun" if _is_passed_through(key, drive, source) else "disk")
    _driver(build, key, drive, disk, source)
    if thread and key.startswith("virtio"):
        disk.one("driver").attributes["iothread"] = str(thread)
    if source and source.network:
        remote.describe(build, key, disk, source.network)
    elif source:
        disk.add("source", **{"dev" if source.block else "file": source.path})
    unit = _unit(build, key)
    target = disk.add("target", dev=buses.target(key), bus=unit.bus)
    if not cdrom and getattr(drive, "ssd", None):
        target.attributes["rotation_rate"] = "1"
    _limits(drive, disk)
    if cdrom or getattr(drive, "ro", None):
        disk.add("readonly")
    _identity(drive, disk)
    disk.add("alias", name=buses.alias(key))
    if unit.bus == "virtio":
        pci.place(disk, key, q35=build.q35)
    else:
        disk.add("address", type="drive", controller=unit.controller, bus=unit.channel, target=unit.target,
                 unit=unit.unit)  # fmt: skip


def _type(source: Source | None) -> str:
    if source and source.network:
        return "network"
    return "block" if source and source.block else "file"


def _is_passed_through(key: str, drive: Any, source: Source | None) -> bool:
    """Whether a host device is given to the guest with all its SCSI commands.

    Raises:
        Refused: what is named is no block device.
    """
    if not key.startswith("scsi") or not drive.scsiblock:
        return False
    if source is None or not source.block:
        raise Refused(f"{key}: scsiblock=1 needs a block device of the host")
    return True


def _source(build: Build, key: str, drive: Drive) -> Source | None:
    """Where the data are; None for a CD-ROM drive without a disc.

    Raises:
        Refused: the drive asks for something that nothing here can serve.
    """
    if drive.file == "none":
        return None
    if drive.import_from:
        raise Refused(f"{key}: import-from is for new volumes only")
    if drive.file == "cdrom":
        return Source(_CDROM_DEVICE, "raw", block=True)
    source = build.place.sources[drive.file]
    return source._replace(format=drive.format_) if drive.format_ else source


def _driver(build: Build, key: str, drive: Any, disk: Element, source: Source | None) -> None:
    """How QEMU reads and writes. CD-ROM drives take QEMU's own defaults."""
    driver = disk.add("driver", name="qemu", type=source.format if source else "raw")
    # unless told otherwise a guest waits for a storage that is gone or full: file systems in it would break at an error
    usual = None if is_cdrom(drive) or source is None else "stop"
    if read := drive.rerror or usual:
        driver.attributes["rerror_policy"] = read
    if write := drive.werror or usual:
        driver.attributes["error_policy"] = "enospace" if write == "enospc" else write
    if is_cdrom(drive) or source is None:
        driver.attributes |= {"cache": drive.cache} if drive.cache else {}
        driver.attributes |= {"io": drive.aio} if drive.aio else {}
        return
    cache = drive.cache or source.cache
    discard = drive.discard or "ignore"
    zeroes = "off" if drive.detect_zeroes is False else ("unmap" if discard == "on" else "on")
    driver.attributes |= {"cache": cache, **_io(build, key, drive, cache, source)}
    driver.attributes |= {"discard": "unmap" if discard == "on" else "ignore", "detect_zeroes": zeroes}


def _io(build: Build, key: str, drive: Any, cache: str, source: Source) -> dict[str, str]:
    """The way of asynchronous input and output: io_uring where the storage bears it."""
    direct = cache in _DIRECT
    if drive.aio == "native" and not direct:
        raise Refused(f"{key}: aio=native needs cache=none or cache=directsync, not cache={cache}")
    if source.network:
        if drive.aio:
            build.warnings.append(f"{key}: aio={drive.aio} has no effect: QEMU talks to the storage's server itself")
        return {}
    if source.io_uring == "always" or (source.io_uring == "direct" and direct):
        usual = "io_uring"
    else:
        usual = "native" if direct else "threads"
    return {"io": drive.aio or usual}


def _limits(drive: Drive, disk: Element) -> None:
    values = {
        name: str(round(value * factor))
        for option, (name, factor) in THROTTLES.items()
        if (value := getattr(drive, option))
    }
    if values:
        tune = disk.add("iotune")
        for name, value in values.items():
            tune.add(name, value)


def _identity(drive: Any, disk: Element) -> None:
    """What the drive tells the guest about itself."""
    from urllib.parse import unquote

    texts: list[tuple[str, str, Callable[[str], str]]] = [
        ("serial", "serial", unquote),
        ("wwn", "wwn", lambda text: text.removeprefix("0x").lower()),
        ("vendor", "vendor", str),
        ("product", "product", str),
    ]
    for option, name, change in texts:
        value = getattr(drive, option, None)
        if value:
            disk.add(name, change(value))
