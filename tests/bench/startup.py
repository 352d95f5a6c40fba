"""How fast commands start, list many guests and complete words."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.run import Figure, command, paired

PYTHON = "/usr/bin/python3"
PROJECT = Path(__file__).parents[2]
CONFIG = """\
boot: order=scsi0
cores: 2
memory: 2048
name: guest{vmid}
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
onboot: 1
ostype: l26
scsi0: local:{vmid}/vm-{vmid}-disk-0.raw,iothread=1,size=32G
scsihw: virtio-scsi-single
smbios1: uuid=ddf91b3f-a597-42be-9a7e-fb6421dcd5cd
sockets: 1
vmgenid: 7079e97c-50e3-4079-afe7-23e67566b946
"""


def tool(name: str, scratch: Path) -> str:
    """The command as ``make install`` writes it, with this environment's Python."""
    path = scratch / name
    path.write_text(f"#!{sys.executable} -E\nfrom pvetools.cli.{name} import main\n\nmain()\n")
    path.chmod(0o755)
    return str(path)


def many_guests(scratch: Path, count: int) -> Path:
    folder = scratch / "etc/pve/nodes" / os.uname().nodename.split(".")[0] / "qemu-server"
    folder.mkdir(parents=True)
    (scratch / "etc/pve/local").symlink_to(f"nodes/{folder.parent.name}")
    for name in ("qemu-server", "lxc"):
        (scratch / f"etc/pve/{name}").symlink_to(f"local/{name}")
    (folder.parent / "lxc").mkdir()
    for vmid in range(10000, 10000 + count):
        (folder / f"{vmid}.conf").write_text(CONFIG.format(vmid=vmid))
    return folder


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PVETOOLS_ROOT": str(root)}


def start_up(scratch: Path) -> list[Figure]:
    many_guests(scratch, 3)
    qm, env = tool("qm", scratch), environment(scratch)
    found = []
    for words in (["config", "10000"], ["status", "10000"]):
        ours, peer = paired(command([qm, *words], env=env), command([PYTHON, "-c", "pass"]), rounds=21)
        found.append(Figure(f"qm {words[0]} / bare python", ours, peer, 8))
    return found


def list_1000(scratch: Path) -> Figure:
    many_guests(scratch, 1000)
    qm, env = tool("qm", scratch), environment(scratch)
    xml = scratch / "domain.xml"
    names = [f"pvetools-bench-{number}" for number in range(1000)]
    try:
        script = []
        for name in names:
            path = xml.with_name(f"{name}.xml")
            path.write_text(
                f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
                "<os><type arch='x86_64'>hvm</type></os></domain>"
            )
            script.append(f"define {path}")
        subprocess.run(["virsh"], input="\n".join(script), text=True, check=True, capture_output=True)
        ours, peer = paired(command([qm, "list"], env=env), command(["virsh", "list", "--all"]))
    finally:
        undo = "\n".join(f"undefine {name}" for name in names)
        subprocess.run(["virsh"], input=undo, text=True, check=False, capture_output=True)
    return Figure("qm list / virsh list --all, 1,000 guests", ours, peer, 0.7)


def parse_10000(scratch: Path) -> Figure:
    from pvetools.config import guest

    files = sorted(many_guests(scratch, 10000).iterdir())

    def read_bytes() -> None:
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 1 << 16)
            os.close(fd)

    def parse() -> None:
        for path in files:
            guest.quick(path)

    ours, peer = paired(parse, read_bytes, rounds=5)
    return Figure("10,000 configs parsed / their bytes read", ours, peer, 8)


COMPLETE = """
source {completion}
words=(qm start {typed}); COMP_WORDS=("${{words[@]}}" {empty}); COMP_CWORD=2
COMP_LINE="qm start {typed}" COMP_POINT=$((9 + {length}))
start=${{EPOCHREALTIME/./}}
{function} qm "{typed}" start
end=${{EPOCHREALTIME/./}}
echo $(( end - start )) ${{#COMPREPLY[@]}}
"""


def completion(scratch: Path) -> list[Figure]:
    """Microseconds of one TAB; the peer is the goal itself: this figure is a latency."""
    many_guests(scratch, 10000)
    shipped = PROJECT / "completions/pvetools.bash"
    registered = next(
        line for line in shipped.read_text().splitlines() if line.startswith("complete ") and " qm" in line
    )
    function = registered.split("-F ")[1].split()[0]
    found = []
    for typed, goal in (("10", 0.030), ("", 0.120)):
        script = COMPLETE.format(
            completion=shipped, typed=typed, length=len(typed), empty="" if typed else "''", function=function
        )
        expected = 1000 if typed else 10000  # ids are 10000 to 19999
        took = []
        for _ in range(7):
            done = subprocess.run(
                ["bash", "--norc", "-c", script], env=environment(scratch), text=True, check=True, capture_output=True
            )
            micro, offered = map(int, done.stdout.split())
            if offered != expected:
                raise RuntimeError(f"completion of '{typed}' offered {offered} of {expected} guests")
            took.append(micro / 1e6)
            time.sleep(0.01)
        found.append(Figure(f"TAB, 10,000 guests, '{typed}' typed / allowed", sorted(took)[3], goal, 1))
    return found


FIGURES = [start_up, list_1000, parse_10000, completion]
