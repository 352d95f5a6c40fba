"""Tests of pvetools: unit and golden (pure), real (libvirt, QEMU and LXC in a sandbox)."""
