"""Processors of virtual machines: models, NUMA nodes and memory encryption."""

from __future__ import annotations

from pvetools.options.nic import NUMBER_RANGES
from pvetools.schema import formats
from pvetools.schema.core import PropertyString, field
from pvetools.schema.kinds import boolean, choice, integer, number, string

CPU_MODELS = (
    "486", "a64fx", "athlon", "Broadwell", "Broadwell-IBRS", "Broadwell-noTSX", "Broadwell-noTSX-IBRS",
    "Cascadelake-Server", "Cascadelake-Server-noTSX", "Cascadelake-Server-v2", "Cascadelake-Server-v4",
    "Cascadelake-Server-v5", "ClearwaterForest", "Conroe", "Cooperlake", "Cooperlake-v2", "core2duo", "coreduo",
    "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a710", "cortex-a72", "cortex-a76", "EPYC",
    "EPYC-Genoa", "EPYC-Genoa-v2", "EPYC-IBPB", "EPYC-Milan", "EPYC-Milan-v2", "EPYC-Milan-v3", "EPYC-Rome",
    "EPYC-Rome-v2", "EPYC-Rome-v3", "EPYC-Rome-v4", "EPYC-Rome-v5", "EPYC-Turin", "EPYC-v3", "EPYC-v4", "EPYC-v5",
    "GraniteRapids", "GraniteRapids-v2", "GraniteRapids-v3", "Haswell", "Haswell-IBRS", "Haswell-noTSX",
    "Haswell-noTSX-IBRS", "host", "Icelake-Client", "Icelake-Client-noTSX", "Icelake-Server",
    "Icelake-Server-noTSX", "Icelake-Server-v3", "Icelake-Server-v4", "Icelake-Server-v5", "Icelake-Server-v6",
    "Icelake-Server-v7", "IvyBridge", "IvyBridge-IBRS", "KnightsMill", "kvm32", "kvm64", "max", "Nehalem",
    "Nehalem-IBRS", "neoverse-n1", "neoverse-n2", "neoverse-v1", "Opteron_G1", "Opteron_G2", "Opteron_G3",
    "Opteron_G4", "Opteron_G5", "Penryn", "pentium", "pentium2", "pentium3", "phenom", "qemu32", "qemu64",
    "SandyBridge", "SandyBridge-IBRS", "SapphireRapids", "SapphireRapids-v2", "SapphireRapids-v3",
    "SapphireRapids-v4", "SierraForest", "SierraForest-v2", "SierraForest-v3", "Skylake-Client",
    "Skylake-Client-IBRS", "Skylake-Client-noTSX-IBRS", "Skylake-Client-v4", "Skylake-Server",
    "Skylake-Server-IBRS", "Skylake-Server-noTSX-IBRS", "Skylake-Server-v4", "Skylake-Server-v5", "Westmere",
    "Westmere-IBRS",
)  # fmt: skip


class Cpu(PropertyString):
    """Value of ``cpu``."""

    cputype: str = field(string(), "Model, host, or custom-NAME for a model of your own.", bare=True, default="kvm64")
    flags: str | None = field(
        string(r"(?:(?:([+-])([a-zA-Z0-9\-_\.]+))(;(?:([+-])([a-zA-Z0-9\-_\.]+)))*)"),
        "Flags to switch on (+) or off (-), separated by semicolons.",
    )
    hidden: bool = field(boolean, "Hide from the guest that it runs under KVM.", default=False)
    hv_vendor_id: str | None = field(
        string(r"(?:[a-zA-Z0-9]{1,12})"), "Hyper-V vendor that Windows guests see.", name="hv-vendor-id"
    )
    reported_model: str = field(
        choice(*CPU_MODELS),
        "Model that guests see when cputype is a custom one.",
        name="reported-model",
        default="kvm64",
    )
    level: int | None = field(integer(0, 4294967295), "Highest basic CPUID leaf that the guest can ask for.")
    phys_bits: str | None = field(formats.phys_bits, "Width of physical addresses in bits, or host.", name="phys-bits")
    guest_phys_bits: int | None = field(
        integer(32, 64), "Physical address bits that the guest may use.", name="guest-phys-bits"
    )


class NumaNode(PropertyString):
    """Value of ``numa[n]``."""

    cpus: str = field(string(NUMBER_RANGES), "Processors of this node, such as 0-3;8.", required=True)
    memory: float | None = field(number(), "Memory of this node in MiB.")
    hostnodes: str | None = field(string(NUMBER_RANGES), "NUMA nodes of the host to take the memory from.")
    policy: str | None = field(choice("preferred", "bind", "interleave"), "How strictly the host nodes are used.")


class Sev(PropertyString):
    """Value of ``amd-sev``."""

    type: str = field(
        choice("std", "es", "snp")._replace(json={"type": "string", "enum": ["std", "es", "snp"], "maxLength": 3}),
        "Plain SEV, SEV-ES or SEV-SNP.",
        bare=True,
        required=True,
    )
    allow_smt: bool = field(
        boolean, "Allow hosts with simultaneous multithreading (snp).", name="allow-smt", default=True
    )
    kernel_hashes: bool = field(
        boolean, "Put hashes of kernel and initrd into the measured firmware.", name="kernel-hashes", default=False
    )
    no_debug: bool = field(boolean, "Forbid debugging of the guest.", name="no-debug", default=False)
    no_key_sharing: bool = field(
        boolean, "Forbid sharing the key with other guests.", name="no-key-sharing", default=False
    )


class Tdx(PropertyString):
    """Value of ``intel-tdx``."""

    type: str = field(choice("tdx"), "Kind of trust domain.", bare=True, required=True)
    attestation: bool = field(boolean, "Let the guest prove what it runs to others.", required=True, default=True)
    vsock_cid: int = field(integer(2), "Context ID of the quote service.", name="vsock-cid", default=2)
    vsock_port: int = field(integer(0), "Port of the quote service.", name="vsock-port", default=4050)
