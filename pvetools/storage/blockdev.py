"""Block devices: their size, who uses them, and filling them with zeros."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pvetools.storage import mounts
from pvetools.system import run
from pvetools.system.errors import NotFound, PveError
from pvetools.system.units import MIB

STEP = 32 * MIB
PATIENCE = 5.0  # udev looks into a device whenever somebody has written to it
_PASSING = ("udev-worker", "systemd-udevd", "blkid")
# what the kernel serves to others says itself which file lies behind it
_SERVED = (
    ("/sys/block/loop*/loop/backing_file", "the loop device {}", 3),
    ("/sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path", "the NVMe subsystem '{}'", 6),
    ("/sys/kernel/config/target/core/*/*/udev_path", "the SCSI target's device '{}'", 7),
)
_DM_STATUS = 0xC138FD07
_DM_HEAD = struct.Struct("=5I")  # version of the interface, size of the request, where its data begin
_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 16, 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


# Looking.


def size(path: Path) -> int:
    """Bytes of a device.

    Raises:
        NotFound: there is no such device. PveError: it does not answer.
    """
    try:
        with path.open("rb", buffering=0) as device:
            return device.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise NotFound(f"block device '{path}' does not exist") from None
    except OSError as error:
        raise PveError(f"can't read block device '{path}': {error.strerror}") from None


def is_device(path: Path) -> bool:
    """Whether there is a block device."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def wait_for(path: Path, timeout: float = 30.0) -> None:
    """Wait until udev has made the device's node or link.

    Raises:
        PveError: it did not come.
    """
    deadline, pause = time.monotonic() + timeout, 0.002
    while not is_device(path):
        if time.monotonic() > deadline:
            raise PveError(f"block device '{path}' did not appear within {timeout:g} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


def signature(path: Path) -> str:
    """Kind of the file system, partition table, ... that a device holds; empty when there is none."""
    found = json.loads(run.run(["wipefs", "--no-act", "--json", path]).stdout or "{}").get("signatures", ())
    return ", ".join(row["type"] for row in found)


# Who uses it.


def user_of(path: Path) -> str:
    """Who uses a device or one of its partitions, in words; empty when nobody does or there is no such device."""
    if not is_device(path):
        return ""
    deadline, pause = time.monotonic() + PATIENCE, 0.02
    while True:
        try:
            numbers = _numbers(path)
        except FileNotFoundError:
            return ""  # it went away meanwhile
        for look in (_mounted, _held, _swap, _served, _opened):
            if user := look(path, numbers):
                return user
        if not is_busy(path):
            return ""
        if time.monotonic() > deadline:
            return "the kernel or another name space (it is open, or mounted in a container)"
        time.sleep(pause)
        pause = min(2 * pause, 0.3)


def _sysfs(path: Path) -> Path:
    """The kernel's folder about a device."""
    number = path.stat().st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _numbers(path: Path) -> frozenset[str]:
    """MAJOR:MINOR of a device and its partitions."""
    folder = _sysfs(path)
    found = [folder / "dev", *(part.parent / "dev" for part in folder.glob("*/partition"))]
    return frozenset(file.read_text().strip() for file in found)


def _mounted(path: Path, numbers: frozenset[str]) -> str:
    """A mount of this process or, such as those of containers, of another one."""
    real = os.path.realpath(path)
    for pid, there in mounts.everywhere():
        for mount in there:
            # file systems on more than one device show a number of their own
            by_name = mount.source.startswith("/dev/") and os.path.realpath(mount.source) == real
            if by_name or mount.device in numbers:
                return f"the mount '{mount.point}'" + ("" if pid == "self" else f" of process {pid}")
    return ""


def _held(_path: Path, numbers: frozenset[str]) -> str:
    for number in sorted(numbers):
        for holder in Path(f"/sys/dev/block/{number}/holders").glob("*"):
            with contextlib.suppress(OSError):
                return f"the device '{(holder / 'dm/name').read_text('utf-8', 'replace').strip()}'"
            return f"the device '{holder.name}'"
    return ""


def _swap(path: Path, numbers: frozenset[str]) -> str:
    for line in Path("/proc/swaps").read_text("utf-8", "surrogateescape").split("\n")[1:]:
        with contextlib.suppress(OSError):
            found = Path(mounts.unescaped(line.partition(" ")[0].partition("\t")[0])).stat()
            if stat.S_ISBLK(found.st_mode) and _number(found) in numbers:
                return "the host as swap space"
    return ""


def _number(found: os.stat_result) -> str:
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _served(path: Path, numbers: frozenset[str]) -> str:
    """Loop devices, and the kernel's own servers for NVMe over fabrics and iSCSI."""
    for pattern, words, place in _SERVED:
        for entry in Path("/").glob(pattern[1:]):
            with contextlib.suppress(OSError):
                found = Path(entry.read_text("utf-8", "surrogateescape").rstrip("\n") or "/").stat()
                if stat.S_ISBLK(found.st_mode) and _number(found) in numbers:
                    return words.format(entry.parts[place])
    return ""


def _opened(path: Path, numbers: frozenset[str]) -> str:
    for pid, number in _open_devices():
        if number in numbers:
            try:
                name = Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
            except OSError:
                continue  # it has ended meanwhile
            if not any(word in name for word in _PASSING):
                return f"a running QEMU (process {pid})" if "qemu" in name else f"process {pid} ({name})"
    return ""


def _open_devices() -> Iterator[tuple[str, str]]:
    """Process and MAJOR:MINOR of every block device that a process has open, also by a name of its own."""
    for folder in Path("/proc").glob("[1-9]*/fd"):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if "/dev/" in os.readlink(entry.path):  # noqa: PTH115 - there are thousands
                        found = os.stat(entry.path)  # noqa: PTH116
                        if stat.S_ISBLK(found.st_mode):
                            yield folder.parts[2], _number(found)


def is_busy(path: Path) -> bool:
    """Whether the kernel itself says that it is in use, whoever that is and in whichever name space."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return open_count(path) > 0


def open_count(path: Path) -> int:
    """How often a device of the device mapper is open; 0 for others."""
    number = path.stat().st_rdev
    if not (_sysfs(path) / "dm").is_dir():
        return 0
    request = bytearray(312)
    _DM_HEAD.pack_into(request, 0, 4, 0, 0, len(request), len(request))
    struct.pack_into("=Q", request, 40, os.makedev(os.major(number), os.minor(number)))
    with contextlib.suppress(OSError), open("/dev/mapper/control", "rb", buffering=0) as control:  # noqa: PTH123
        fcntl.ioctl(control, _DM_STATUS, request)
        return int(struct.unpack_from("=i", request, 24)[0])
    return 0


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Have a device for oneself as far as the kernel knows; False: somebody else has it or uses it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise PveError(f"can't open block device '{path}': {error.strerror}") from None
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)


def is_ours(path: Path) -> bool:
    """Whether the only user of a device of the device mapper is who claimed it; udev may look into it for a moment."""
    deadline, pause = time.monotonic() + PATIENCE, 0.02
    while open_count(path) > 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.3)
    return True


# Zeros.


def zero_fast(path: Path, start: int = 0, length: int = 0) -> bool:
    """Let the device itself turn a part (default: all up to its end) into zeros, and take the space back if it can.

    Returns:
        Whether it can; otherwise nothing has changed but perhaps a beginning of the part.
    """
    end = start + length if length else size(path)
    with contextlib.closing(_Device(path)) as device:
        for place in range(start, end, 1 << 30):
            if not device.fill(_PUNCH_HOLE, place, min(1 << 30, end - place)):
                return False
    return True


def can_zero_fast(path: Path) -> bool:
    """Whether ``zero_fast`` can, as the kernel has it from the device, or has seen it fail."""
    try:
        return int((_sysfs(path) / "queue/write_zeroes_max_bytes").read_text()) > 0
    except (OSError, ValueError):
        return False


def overwrite(
    path: Path,
    start: int = 0,
    length: int = 0,
    *,
    step: int = STEP,
    per_second: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write zeros over a part of a device (default: all up to its end).

    Args:
        path: the device.
        start: first byte.
        length: bytes; 0: to the end.
        step: bytes at a time.
        per_second: bytes per second at most; 0: as fast as it goes.
        report: gets bytes done and bytes in all after each step.

    Raises:
        PveError: the device refuses.
    """
    end = start + length if length else size(path)
    began = time.monotonic()
    with contextlib.closing(_Device(path)) as device:
        for place in range(start, end, step):
            part = min(step, end - place)
            if not device.fill(_ZERO_RANGE, place, part):
                device.write(place, part)
            done = place + part - start
            if report:
                report(done, end - start)
            if per_second:
                time.sleep(max(0.0, began + done / per_second - time.monotonic()))
        device.sync()


def sync(path: Path) -> None:
    """Have what was written to a device on its medium. PveError: it failed."""
    with contextlib.closing(_Device(path)) as device:
        device.sync()


def zero(path: Path, start: int = 0, length: int = 0) -> None:
    """Turn a part of a device into zeros the quickest way that it has."""
    if not zero_fast(path, start, length):
        overwrite(path, start, length)


class _Device:
    """A device that is open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PveError(f"can't write to block device '{path}': {error.strerror}") from None

    def fill(self, mode: int, start: int, length: int) -> bool:
        """Have the kernel fill a part with zeros; whether it could."""
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).fallocate
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        while call(self.fd, mode | _KEEP_SIZE, start, length):
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise PveError(f"can't overwrite block device '{self.path}': {os.strerror(number)}")
        return True

    def write(self, start: int, length: int) -> None:
        try:
            while length:
                written = os.pwrite(self.fd, bytes(min(MIB, length)), start)
                start, length = start + written, length - written
        except OSError as error:
            raise PveError(f"can't overwrite block device '{self.path}': {error.strerror}") from None

    def sync(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise PveError(f"can't write to block device '{self.path}': {error.strerror}") from None

    def close(self) -> None:
        os.close(self.fd)
