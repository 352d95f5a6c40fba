"""What there is that a storage could be defined for: exports, shares, targets, subsystems, volume groups and pools."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pvetools.storage import iscsi, nvmeof, san, servers, volumegroups
from pvetools.system import run
from pvetools.system.errors import MissingTool, PveError, RunError

_PATIENCE = 40.0
_GUESTS_FOLDER = re.compile(r".*/(?:subvol|basevol)-\d+-[^/]+", re.ASCII)
_STATUS = re.compile(r"NT_STATUS_\w+")
# why a login fails, in the server's words and in ours
_REFUSALS = {
    "NT_STATUS_LOGON_FAILURE": "user name or password are wrong",
    "NT_STATUS_ACCESS_DENIED": "access denied",
    "NT_STATUS_ACCOUNT_DISABLED": "the account is disabled",
    "NT_STATUS_ACCOUNT_LOCKED_OUT": "the account is locked",
    "NT_STATUS_PASSWORD_EXPIRED": "the password has expired",
}


def nfs(server: str) -> list[dict[str, str]]:
    """Exports of an NFS server, and who may mount them. A server of version 4 alone does not tell.

    Raises:
        PveError: it does not answer.
    """
    servers.nfs(server)
    try:
        said = run.run(["showmount", "--no-headers", "--exports", server], timeout=_PATIENCE).stdout
    except RunError as error:
        raise PveError(f"server '{server}' does not tell its exports: {error.stderr}") from None
    found = []
    for line in said.splitlines():
        path, _, who = line.rpartition(" ")
        if path.startswith("/"):
            found.append({"path": path.rstrip(), "options": who})
    return sorted(found, key=lambda row: row["path"])


def cifs(server: str, username: str = "", password: str = "", domain: str = "") -> list[dict[str, str]]:
    """Shares of an SMB server, as a user or as a guest sees them.

    Raises:
        PveError: it does not answer, or does not let the user in.
    """
    with _login_file(username, password, domain) as file:
        servers.smb(server)
        words = ["smbclient", "--list", server, "--grepable", "--debuglevel=0", "--option=client min protocol=SMB2"]
        words.append("--option=disable netbios=yes")  # or it looks for a workgroup as well
        if username:
            words += ["--authentication-file", f"/proc/self/fd/{file}"]
        else:
            words += ["--user=guest", "--no-pass"]
        done = run.run(words, timeout=_PATIENCE, check=False, pass_fds=(file,))
    if done.code:
        raise PveError(f"server '{server}' does not tell its shares: {_refusal(done.stdout + done.stderr)}")
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return [{"share": row[1], "description": row[2]} for row in rows if row[0] == "Disk" and len(row) == 3]


@contextmanager
def _login_file(username: str, password: str, domain: str) -> Iterator[int]:
    """A file in memory that says who logs in: the command line is no place for passwords."""
    lines = {"username": username, "password": password, "domain": domain}
    for key, value in lines.items():
        if any(sign in value for sign in "\n\r\0"):
            raise PveError(f"the {key} must not contain line breaks")
    text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value or key != "domain")
    file = os.memfd_create("login")
    try:
        os.write(file, text.encode("utf-8", "surrogateescape"))
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _refusal(text: str) -> str:
    match = _STATUS.search(text)
    if not match:
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else "no message"
    return _REFUSALS.get(match[0], match[0])


def _by_target(found: Sequence[tuple[san.Portal, str]]) -> list[dict[str, str]]:
    targets: dict[str, list[str]] = {}
    for place, name in found:
        targets.setdefault(name, []).append(str(place))
    return [{"target": name, "portal": ",".join(dict.fromkeys(places))} for name, places in sorted(targets.items())]


def iscsi_targets(portal: str) -> list[dict[str, str]]:
    """Targets that an iSCSI portal offers, with all their portals.

    Raises:
        PveError: it does not answer.
    """
    place = san.portal(portal, iscsi.PORT)
    san.reach(place)
    return _by_target(iscsi.discover(place))


def nvme_subsystems(portal: str) -> list[dict[str, str]]:
    """Subsystems that an NVMe/TCP portal offers, with all their portals.

    Raises:
        PveError: it does not answer.
    """
    return _by_target(nvmeof.discover(san.portal(portal, nvmeof.PORT)))


def volume_groups() -> list[dict[str, str]]:
    """Volume groups of this host; none where LVM is not installed."""
    try:
        return [{"vg": name} for name in sorted(group.name for group in volumegroups.groups())]
    except MissingTool:
        return []


def thin_pools(group: str) -> list[dict[str, str]]:
    """Thin pools of a volume group.

    Raises:
        NotFound: there is no such group.
    """
    found = volumegroups.logicals(group)
    return [{"lv": name} for name in sorted(row.name for row in found if row.kind == "t")]


def zfs_pools() -> list[dict[str, str]]:
    """ZFS pools and their file systems, without those of guests; none where ZFS is not installed."""
    try:
        said = run.run(["zfs", "list", "-H", "-t", "filesystem", "-o", "name"], timeout=_PATIENCE).stdout
    except MissingTool:
        return []
    return [{"pool": name} for name in said.splitlines() if name and not _GUESTS_FOLDER.fullmatch(name)]
