"""Processors of a domain: model, topology, shares of the host's time."""

from __future__ import annotations

from pvetools.guest.qemu import firmware
from pvetools.guest.qemu.build import Build, number_set, refuse
from pvetools.guest.qemu.element import Element
from pvetools.options.cpu import NumaNode
from pvetools.system.errors import Refused

PERIOD = 100_000  # microseconds over which a limit holds


def counts(build: Build) -> tuple[int, int, int]:
    """Sockets, cores per socket, and processors plugged in at start.

    Raises:
        Refused: more processors at start than there are.
    """
    options = build.options
    given, old_style = options.sockets, options.smp
    sockets = given if "sockets" in options.given else old_style
    total = sockets * options.cores
    now = options.vcpus or total
    if now > total:
        raise Refused(f"vcpus: {now} is more than sockets * cores = {total}")
    return sockets, options.cores, now


def processors(build: Build) -> None:
    """Number, model and flags."""
    sockets, cores, now = counts(build)
    options = build.options
    total = sockets * cores
    count = build.domain.add("vcpu", total, placement="static")
    if now != total:
        count.attributes["current"] = str(now)
    if options.affinity:
        count.attributes["cpuset"] = number_set(options.affinity)
    cpu = _model(build)
    cpu.add("topology", sockets=sockets, dies=1, cores=cores, threads=1)
    _flags(build, cpu)
    if options.numa:
        _numa(build, cpu, total)


def _model(build: Build) -> Element:
    """The ``cpu`` element with its model.

    Raises:
        Refused: a model that cannot be had here.
    """
    options = build.options
    name = (options.cpu.cputype if options.cpu and "cputype" in options.cpu.given else "") or (
        "kvm64" if build.kvm else "qemu64"
    )
    if name.startswith("custom-"):
        raise refuse("cpu", name, "custom models cannot be used yet")
    if name == "host" and not build.kvm:
        raise refuse("cpu", name, "without kvm there is no host processor to pass on; use max")
    if name == "host":
        return build.domain.add("cpu", mode="host-passthrough", check="none", migratable="on")
    if name == "max":
        return build.domain.add("cpu", mode="maximum", check="none", migratable="on")
    cpu = build.domain.add("cpu", mode="custom", match="exact", check="none")
    cpu.add("model", name, fallback="forbid")
    return cpu


def _flags(build: Build, cpu: Element) -> None:
    options = build.options
    flags: dict[str, bool] = {}
    model = cpu.find("model")
    if model and model.content == "kvm64" and build.kvm:
        flags |= {"lahf_lm": True, "sep": True}
    if options.ostype == "solaris":
        flags["x2apic"] = False
    if options.cpu and options.cpu.flags:
        flags |= {word[1:]: word[0] == "+" for word in options.cpu.flags.split(";")}
    for name, wanted in flags.items():
        if name in firmware.HYPERV_FLAGS:
            continue
        cpu.add("feature", policy="require" if wanted else "disable", name=name)
    if options.cpu and options.cpu.phys_bits:
        host = options.cpu.phys_bits == "host"
        cpu.add("maxphysaddr", mode="passthrough" if host else "emulate", bits=None if host else options.cpu.phys_bits)


def shares(build: Build) -> None:
    """Limit and weight of the guest's share of processor time."""
    options = build.options
    if not options.cpulimit and options.cpuunits is None:
        return
    tune = build.domain.add("cputune")
    if options.cpuunits is not None:
        # control groups of version 2 take the number as it is, from 1 to 10000; version 1 from 2 on
        tune.add("shares", min(options.cpuunits, 10_000) if build.place.cgroup2 else max(2, options.cpuunits))
    if options.cpulimit:
        tune.add("global_period", PERIOD)
        tune.add("global_quota", int(options.cpulimit * PERIOD))


def _numa(build: Build, cpu: Element, total: int) -> None:
    """NUMA nodes as given, or one for each socket."""
    options = build.options
    nodes = dict(options.numa_nodes) or _even_nodes(build)
    memory = sum(int(node.memory or 0) for node in nodes.values())
    if memory != options.memory.current:
        raise Refused(f"numa: the nodes' memory ({memory} MiB) must add up to memory: {options.memory.current}")
    top = cpu.add("numa")
    tuned: list[tuple[int, NumaNode]] = []
    for index in range(len(nodes)):
        node = nodes.get(index)
        if node is None:
            raise Refused(f"numa{index}: missing; NUMA nodes must be numbered without gaps")
        cpus = number_set(node.cpus)
        top.add("cell", id=index, cpus=cpus, memory=int(node.memory or 0), unit="MiB")
        if node.hostnodes:
            tuned.append((index, node))
    used = sum(_size(node.cpus) for node in nodes.values())
    if used != total:
        raise Refused(f"numa: the nodes have {used} processors together, the guest has {total}")
    if tuned:
        tune = build.domain.add("numatune")
        for index, node in tuned:
            mode = {"preferred": "preferred", "interleave": "interleave"}.get(node.policy or "", "strict")
            tune.add("memnode", cellid=index, mode=mode, nodeset=number_set(node.hostnodes or ""))


def _even_nodes(build: Build) -> dict[int, NumaNode]:
    sockets, cores, _ = counts(build)
    memory = build.options.memory.current
    share, rest = divmod(memory, sockets)
    return {
        index: NumaNode(
            cpus=f"{index * cores}-{(index + 1) * cores - 1}", memory=float(share + (rest if index == 0 else 0))
        )
        for index in range(sockets)
    }


def _size(cpus: str) -> int:
    total = 0
    for part in cpus.split(";"):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
