"""pvetools: virtual machines, containers, storage and backup on plain Linux hosts, with the commands of Proxmox VE."""

__version__ = "0.1.0"
