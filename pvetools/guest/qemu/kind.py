"""What virtual machines supply to the code that they share with containers."""

from __future__ import annotations

from collections.abc import Mapping

from pvetools.guest.common.kind import GuestKind, Making
from pvetools.guest.qemu import running
from pvetools.guest.qemu.texts import is_volume_key, volume_in, volumes, with_size
from pvetools.options.qemu import QemuOptions


def is_running(vmid: int) -> bool:
    """Whether a guest runs; a paused one does."""
    return running.running_pid(vmid) != 0


def rules(section: Mapping[str, str]) -> dict[str, str]:
    """Options that do not fit together; texts that cannot be parsed are not this function's business."""
    errors: dict[str, str] = {}
    memory = _number(volume_in(section.get("memory", "512")) or section.get("memory", "").partition("=")[2], 512)
    if _number(section.get("balloon"), 0) > memory:
        errors["balloon"] = f"value too large: {section['balloon']} is more than memory ({memory})"
    sockets = _number(section.get("sockets") or section.get("smp"), 1)
    total = sockets * _number(section.get("cores"), 1)
    if _number(section.get("vcpus"), 0) > total:
        errors["vcpus"] = f"{section['vcpus']} is more than sockets * cores = {total}"
    return errors


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default


def _make_volume(making: Making) -> str:
    from pvetools.guest.qemu import attach

    return attach.make_volume(making)


def apply_live(vmid: int, key: str, text: str | None) -> bool:
    """Changes of a running machine wait for its next start."""
    del vmid, key, text
    return False


QEMU = GuestKind(
    name="qemu",
    label="VM",
    tool="qm",
    options=QemuOptions,
    is_running=is_running,
    volumes=volumes,
    make_volume=_make_volume,
    is_volume_key=is_volume_key,
    with_size=with_size,
    rules=rules,
    apply_live=apply_live,
)
