"""The only module that talks to libvirt. Guests are transient domains: made from their file, gone when they stop."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pvetools.guest.qemu.place import domain_name
from pvetools.guest.qemu.running import running_pid as running_pid
from pvetools.guest.qemu.running import running_pids as running_pids
from pvetools.guest.qemu.running import wait_for_end as wait_for_end
from pvetools.system.errors import PveError

if TYPE_CHECKING:
    import libvirt

    from pvetools.guest.qemu.domain import Domain
    from pvetools.guest.qemu.secret import Secret

URI = "qemu:///system"
IO_ERROR = (3, 5)  # state and reason of a guest that was paused because a disk failed
_STATES = {1: "running", 2: "running", 3: "paused", 4: "shutdown", 5: "shutdown", 6: "internal-error", 7: "suspended"}
_BACK_WITHIN = 15.0  # seconds that a restart of libvirt's daemon may take
_GONE_WITHIN = 10.0  # seconds that libvirt may know a domain after its QEMU has ended


class Hypervisor(PveError):
    """Libvirt or QEMU refused to do something; the sentence is theirs."""


# -- the connection ----------------------------------------------------------------------------------------------------

_connection: Any = None


def connect() -> libvirt.virConnect:
    """The connection to this host's libvirt, made at first use, and anew when the daemon was restarted.

    Raises:
        PveError: libvirt cannot be reached; says how to start it.
    """
    global _connection
    if _connection is not None and not _connection.isAlive():
        _connection = None
        _wait_for_daemon()
    if _connection is None:
        import atexit

        _connection = _opened()
        atexit.register(disconnect)  # while libvirt's module is still whole
    return _connection


def _opened() -> libvirt.virConnect:
    try:
        import libvirt
    except ImportError:
        raise PveError("Python's libvirt module is missing; install it with: apt install python3-libvirt") from None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        return libvirt.open(URI)
    except libvirt.libvirtError as error:
        raise PveError(f"can't reach libvirt: {_words(error)}; start it with: {_start_command()}") from None


def _wait_for_daemon() -> None:
    """Give a daemon that ended while it was used some seconds to come back, as after an upgrade."""
    deadline, pause = time.monotonic() + _BACK_WITHIN, 0.05
    while time.monotonic() < deadline:
        with contextlib.suppress(PveError):
            _opened().close()
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def disconnect() -> None:
    """Forget the connection; the next call makes a new one."""
    global _connection
    _connection = None


def _start_command() -> str:
    from pvetools.system import run

    daemon = "libvirtd" if run.find("libvirtd") or not run.find("virtqemud") else "virtqemud"
    return f"systemctl start {daemon}"


def _words(error: Exception) -> str:
    """Libvirt's sentence without its classes of errors and without QEMU's time stamps."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z qemu-system-\w+: ", "", str(error))
    for prefix in ("internal error: ", "unsupported configuration: ", "operation failed: "):
        text = text.removeprefix(prefix)
    return text.strip().rstrip(".")


@contextlib.contextmanager
def _reported(doing: str) -> Iterator[None]:
    """Turn libvirt's errors into ours: what was tried, and libvirt's own words."""
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        raise Hypervisor(f"{doing}: {_explained(error)}") from None


def _explained(error: libvirt.libvirtError) -> str:
    words = _words(error)
    if "does not support machine type" in words:
        return f"{words} (a machine type of a newer QEMU? set machine to pc or q35)"
    if "Unknown driver" in words:
        return f"{words} (install it with: apt install qemu-block-extra)"
    if "CPU tuning is not available" in words or "CPU controller is not mounted" in words:
        return f"{words}: cpuunits and cpulimit need the cpu control group in libvirt"
    return words


def _domain(vmid: int) -> libvirt.virDomain:
    """The guest's domain.

    Raises:
        PveError: it does not run.
    """
    found = _find(vmid)
    if found is None:
        raise PveError(f"VM {vmid} not running")
    return found


def _find(vmid: int) -> libvirt.virDomain | None:
    import libvirt

    connection = connect()
    try:
        return connection.lookupByName(domain_name(vmid))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        if not connection.isAlive():  # only a call that fails shows that the daemon was restarted
            return _find(vmid)
        raise Hypervisor(f"can't ask libvirt for VM {vmid}: {_words(error)}") from None


# -- life of a domain --------------------------------------------------------------------------------------------------


def create(vmid: int, domain: Domain, *, paused: bool = False, timeout: float | None = None) -> None:
    """Start a transient domain.

    Args:
        vmid: the guest.
        domain: its definition.
        paused: leave the processors stopped.
        timeout: seconds after which the start is given up; None leaves it to libvirt.

    Raises:
        Hypervisor: with the words of libvirt or QEMU. PveError: time-out; nothing runs then.
    """
    import libvirt

    connection = connect()
    flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
    with _known({secret: secret.value() for secret in domain.secrets}):
        if timeout is None:
            with _reported(f"start of VM {vmid} failed"):
                connection.createXML(domain.xml, flags)
        else:
            _create_in_time(vmid, lambda: connection.createXML(domain.xml, flags), timeout)


@contextlib.contextmanager
def _known(values: Mapping[Secret, bytes]) -> Iterator[None]:
    """Let libvirt know secrets for as long as the block lasts; it keeps them in memory only."""
    with contextlib.ExitStack() as undo:
        for secret, value in values.items():
            with _reported(f"libvirt can't take the key of user '{secret.user}'"):
                made = connect().secretDefineXML(secret.definition())
                undo.callback(_forget, made)
                made.setValue(value)
        yield


def _forget(secret: libvirt.virSecret) -> None:
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):  # libvirt forgets it when it is restarted
        secret.undefine()


def _create_in_time(vmid: int, call: Callable[[], object], timeout: float) -> None:
    """Start in a thread of its own: the call into libvirt itself cannot be interrupted."""
    import threading

    failures: list[BaseException] = []

    def work() -> None:
        try:
            with _reported(f"start of VM {vmid} failed"):
                call()
        except PveError as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        with contextlib.suppress(PveError):
            destroy(vmid)
        raise PveError(f"start of VM {vmid} failed: got timeout after {timeout:g} seconds")
    for failure in failures:
        raise failure


def check(vmid: int, domain: Domain) -> list[str]:
    """QEMU's command line for a domain definition, as words; nothing is started, and no secret is read for it.

    Raises:
        Hypervisor: libvirt does not accept the definition.
    """
    import shlex
    import uuid

    connection, xml, values = connect(), domain.xml, {}
    for secret in domain.secrets:  # with names that nobody who starts the guest now uses
        other = secret._replace(uuid=str(uuid.uuid4()), purpose=f"{secret.purpose} {uuid.uuid4()}")
        xml = xml.replace(secret.uuid, other.uuid)
        values[other] = b"secret"
    with _known(values), _reported(f"no command line for VM {vmid}"):
        return shlex.split(connection.domainXMLToNative("qemu-argv", xml, 0))


def state(vmid: int) -> str:
    """``running``, ``paused``, ``io-error``, ...; ``stopped`` when libvirt does not know the guest."""
    found = _find(vmid)
    if found is None:
        return "stopped"
    with _reported(f"can't get the state of VM {vmid}"):
        number, reason = found.state()
        return "io-error" if (number, reason) == IO_ERROR else _STATES.get(number, "stopped")


def destroy(vmid: int, timeout: float | None = None) -> None:
    """Pull the plug: QEMU is ended at once. Nothing happens when the guest does not run.

    Raises:
        PveError: the process did not end within ``timeout`` seconds.
    """
    pid = running_pid(vmid)
    found = _find(vmid)
    if found is not None:
        with contextlib.suppress(Hypervisor), _reported(f"stop of VM {vmid} failed"):
            found.destroy()
    if pid and not wait_for_end(pid, _GONE_WITHIN if timeout is None else timeout):
        raise PveError(f"VM {vmid} did not end: QEMU (process {pid}) still runs")
    wait_forgotten(vmid)


def wait_forgotten(vmid: int) -> None:
    """Wait until libvirt has noticed that a guest's QEMU is gone, or until there is another one.

    The latter happens when a killed command had begun to start it.

    Raises:
        PveError: neither within ten seconds.
    """
    deadline, pause = time.monotonic() + _GONE_WITHIN, 0.002
    while _find(vmid) is not None and not running_pid(vmid):
        if time.monotonic() > deadline:
            raise PveError(f"libvirt still holds the ended domain {domain_name(vmid)}")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def reset(vmid: int) -> None:
    """Push the reset button."""
    with _reported(f"reset of VM {vmid} failed"):
        _domain(vmid).reset()


def suspend(vmid: int) -> None:
    """Stop the processors; memory stays."""
    with _reported(f"suspend of VM {vmid} failed"):
        _domain(vmid).suspend()


def resume(vmid: int) -> None:
    """Let the processors run again."""
    with _reported(f"resume of VM {vmid} failed"):
        _domain(vmid).resume()


def press_power(vmid: int, *, agent: bool) -> None:
    """Ask the guest's system to shut down: by its agent when it answers, else by the ACPI power button."""
    import libvirt

    found = _find(vmid)
    if found is None:
        return
    if agent:
        with contextlib.suppress(libvirt.libvirtError):
            found.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            return
    try:
        found.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise Hypervisor(f"shutdown of VM {vmid} failed: {_words(error)}") from None


# -- asking and changing a running domain ------------------------------------------------------------------------------


def statistics(vmid: int) -> dict[str, Any]:
    """Libvirt's figures of a running guest: state, cpu, balloon, disks, cards."""
    import libvirt

    wanted = (
        libvirt.VIR_DOMAIN_STATS_STATE
        | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_INTERFACE
        | libvirt.VIR_DOMAIN_STATS_BLOCK
    )
    with _reported(f"can't get the figures of VM {vmid}"):
        found = connect().domainListGetStats([_domain(vmid)], wanted, 0)
    return dict(found[0][1]) if found else {}


def qmp(vmid: int, command: str, **arguments: Any) -> Any:
    """Run a command of QEMU's monitor and return what it returns.

    Raises:
        Hypervisor: QEMU's words.
    """
    import json

    question = {"execute": command, **({"arguments": arguments} if arguments else {})}
    return _monitor(vmid, command, json.dumps(question), flags=0)


def hmp(vmid: int, line: str) -> str:
    """Run a line of QEMU's human monitor and return its text."""
    return str(_monitor(vmid, line, line, flags=1))


def _monitor(vmid: int, name: str, text: str, flags: int) -> Any:
    domain = _domain(vmid)
    import json

    import libvirt_qemu

    with _reported(f"monitor command '{name}' of VM {vmid} failed"):
        answer = libvirt_qemu.qemuMonitorCommand(domain, text, flags)
    if flags:
        return answer
    decoded = json.loads(answer)
    if "error" in decoded:
        raise Hypervisor(f"monitor command '{name}' of VM {vmid} failed: {decoded['error'].get('desc')}")
    return decoded.get("return")


def block_resize(vmid: int, target: str, size: int) -> None:
    """Tell a running guest that its disk has grown; QEMU grows the image.

    Args:
        vmid: the guest.
        target: libvirt's name of the disk.
        size: bytes.
    """
    import libvirt

    with _reported(f"resize of disk {target} of VM {vmid} failed"):
        _domain(vmid).blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def has_shares(vmid: int) -> bool:
    """Whether the weight of a running guest's processor time is in force: libvirt may run without control groups."""
    import libvirt

    try:
        return "cpu_shares" in _domain(vmid).schedulerParameters()
    except libvirt.libvirtError:
        return False


def version() -> str:
    """Version of this host's QEMU, as its program tells it: ``7.2.22``."""
    from pvetools.system import run

    said = run.run(["qemu-system-x86_64", "--version"]).stdout
    match = re.search(r"version ([0-9]+(?:\.[0-9]+)+)", said)
    return match[1] if match else "0.0"


def user_ids() -> tuple[int, int]:
    """User and group as which libvirt runs QEMU: those who own its folder of state."""
    try:
        owner = Path("/var/lib/libvirt/qemu").stat()
    except OSError:
        return 0, 0
    return owner.st_uid, owner.st_gid


# -- backup: a job that exports the disks as they are when it begins ---------------------------------------------------

_AGENT_PING = 3  # seconds in which a guest agent answers


class BackupDisk(NamedTuple):
    """A disk of a backup job: libvirt's name of it, the name of its export, where old blocks are saved meanwhile."""

    target: str
    export: str
    scratch: Path


def begin_backup(vmid: int, socket: Path, disks: Sequence[BackupDisk]) -> None:
    """Begin a backup job in pull mode: one NBD server on a unix socket with an export for each disk.

    The exports show the disks at this moment, whatever the guest writes, until the job is aborted.

    Raises:
        Hypervisor: the guest does not run, or libvirt refuses.
    """
    from pvetools.guest.qemu.element import Element

    job = Element("domainbackup", mode="pull")
    job.add("server", transport="unix", socket=socket)
    top = job.add("disks")
    for disk in disks:
        one = top.add("disk", name=disk.target, backup="yes", type="file", exportname=disk.export)
        one.add("scratch", file=disk.scratch)
    with _reported(f"backup of VM {vmid} can't begin"):
        _domain(vmid).backupBegin(job.serialise(), None, 0)


def abort_backup(vmid: int) -> bool:
    """End a guest's backup job and wait until it is gone; False when there was none.

    Raises:
        Hypervisor: libvirt refuses.
    """
    found = _find(vmid)
    if found is None or not _has_backup(found):
        return False
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):  # it ended by itself meanwhile
        found.abortJob()
    deadline, pause = time.monotonic() + _GONE_WITHIN, 0.002
    while _has_backup(found):
        if time.monotonic() > deadline:
            raise Hypervisor(f"the backup job of VM {vmid} does not end")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return True


def _has_backup(domain: libvirt.virDomain) -> bool:
    import libvirt

    none = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
    try:
        domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in none:
            return False
        raise Hypervisor(f"can't ask libvirt for a backup job: {_words(error)}") from None
    return True


def is_paused(vmid: int) -> bool:
    """Whether a running guest's processors are stopped."""
    return state(vmid) in ("paused", "io-error")


def agent_answers(vmid: int) -> bool:
    """Whether the guest agent answers within three seconds."""
    domain = _domain(vmid)
    import libvirt
    import libvirt_qemu

    try:
        libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', _AGENT_PING, 0)
    except libvirt.libvirtError:
        return False
    return True


def freeze(vmid: int) -> None:
    """Have the guest agent write out and freeze the guest's file systems.

    Raises:
        Hypervisor: the agent's words.
    """
    with _reported(f"freeze of the file systems of VM {vmid} failed"):
        _domain(vmid).fsFreeze()


def thaw(vmid: int) -> None:
    """Let the guest's file systems go on.

    Raises:
        Hypervisor: the agent's words.
    """
    with _reported(f"thaw of the file systems of VM {vmid} failed"):
        _domain(vmid).fsThaw()
