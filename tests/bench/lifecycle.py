"""What our tools add to starting a guest: the same domain through virsh, the same container through lxc-start."""

import os
import statistics
import subprocess
from pathlib import Path

from tests.bench.run import Figure, timed
from tests.bench.startup import environment, tool
from tests.sandbox import template

ROUNDS = 7
START_VM_EXTRA = 0.450
START_CT_EXTRA = 0.250


def run(argv: list[str], env: dict[str, str]) -> str:
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout


def start_vm(scratch: Path) -> Figure:
    """Seconds that ``qm start`` takes longer than ``virsh create`` of the very same domain; peer: what is allowed."""
    env, qm = environment(scratch), tool("qm", scratch)
    words = "create 100 --memory 128 --kvm 0 --scsi0 local:1 --net0 virtio,bridge=vmbr0 --scsihw virtio-scsi-pci"
    run([qm, *words.split()], env)
    run([qm, "start", "100"], env)
    name = next(n for n in run(["virsh", "list", "--name"], env).split() if n.endswith("-100"))
    xml = scratch / "domain.xml"
    xml.write_text(run(["virsh", "dumpxml", "--migratable", name], env))
    run([qm, "stop", "100"], env)
    extra = []
    for _ in range(ROUNDS):
        ours = timed(lambda: run([qm, "start", "100"], env))
        run([qm, "stop", "100"], env)
        peer = timed(lambda: run(["virsh", "create", str(xml)], env))
        run(["virsh", "destroy", name], env)
        extra.append(ours - peer)
    return Figure("qm start minus virsh create / allowed", statistics.median(extra), START_VM_EXTRA, 1)


def start_ct(scratch: Path) -> Figure:
    """Seconds that ``pct start`` takes longer than ``lxc-start`` of the same container; peer: what is allowed."""
    env, pct = environment(scratch), tool("pct", scratch)
    scratch.chmod(0o755)  # the root of an unprivileged container walks through it
    cache = scratch / "var/lib/vz/template/cache"
    cache.mkdir(parents=True)
    packed = template.debian()
    (cache / packed.name).symlink_to(packed)
    words = f"create 101 local:vztmpl/{packed.name} --memory 128 --rootfs local:0 --net0 name=eth0,bridge=vmbr0"
    run([pct, *words.split()], env)
    run([pct, "start", "101"], env)
    run([pct, "stop", "101"], env)
    lxc = ["-P", str(scratch / "var/lib/lxc"), "-n", "101"]
    # Our monitor has the volume mounted in a namespace of its own; lxc-start by hand gets the folder itself.
    written = scratch / "var/lib/lxc/101/config"
    volume = scratch / "var/lib/vz/images/101/subvol-101-disk-0.subvol"
    extra = []
    for _ in range(ROUNDS):
        ours = timed(lambda: run([pct, "start", "101"], env))
        run([pct, "stop", "101"], env)
        mounted = f"dir:{written.parent}/rootfs\n"
        written.write_text(written.read_text().replace(mounted, f"dir:{volume}\n"))
        peer = timed(lambda: run(["lxc-start", *lxc, "-d"], {**os.environ}))
        run(["lxc-stop", *lxc, "-k"], {**os.environ})
        extra.append(ours - peer)
    run([pct, "destroy", "101"], env)
    return Figure("pct start minus lxc-start / allowed", statistics.median(extra), START_CT_EXTRA, 1)


FIGURES = [start_vm, start_ct]
