"""The list of scheduled jobs (``jobs.cfg``), as far as guests concern it."""

from __future__ import annotations

from pvetools.config import sections
from pvetools.schema.kinds import split_list
from pvetools.system import paths


def forget_guest(vmid: int) -> None:
    """Take a destroyed guest out of all backup jobs; a job whose list of guests becomes empty is removed.

    Source: vzdump.md section 14.
    """
    with sections.editing(paths.etc_pve() / "jobs.cfg") as file:
        for name, job in list(file.ids().items()):
            if job.type == "vzdump":
                _forget(file, name, job, str(vmid))


def _forget(file: sections.SectionFile, name: str, job: sections.Section, vmid: str) -> None:
    for key in ("vmid", "exclude"):
        listed = split_list(job.get(key))
        if vmid not in listed:
            continue
        left = [one for one in listed if one != vmid]
        if left:
            job.values[key] = ",".join(left)
        elif key == "exclude":
            del job.values[key]
        else:
            file.remove(name)
            return
