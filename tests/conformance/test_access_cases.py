"""Public cases of privileges on storages: limits of bandwidth, and who may use a volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pvetools.storage import volumes
from pvetools.storage.access import ROOT, Privileges
from pvetools.system import paths
from pvetools.system.errors import PveError
from tests.conformance import loader

LIMITS, LIMITS_AT = loader.table("storage/bwlimit")
ACCESS, ACCESS_AT = loader.table("storage/volume_access")


@pytest.fixture
def etc_pve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVETOOLS_ROOT", str(tmp_path))
    paths.etc_pve().mkdir(parents=True)
    return paths.etc_pve()


@pytest.mark.parametrize("case", LIMITS)
def test_limits_of_bandwidth(case: dict[str, Any], etc_pve: Path) -> None:
    (etc_pve / "datacenter.cfg").write_text(LIMITS_AT["datacenter_cfg"])
    (etc_pve / "storage.cfg").write_text(LIMITS_AT["storage_cfg"])
    user = case["user"]
    privileges = ROOT if user == "root@pam" else Privileges(LIMITS_AT["privileges"][user])
    found = volumes.bwlimit(case["operation"], case["storages"] or (), case["override"], privileges)
    assert found == (case["expected"] or 0)


def _privileges(user_cfg: str) -> Mapping[str, Privileges]:
    """Privileges of the users of a ``user.cfg``, as far as the cases need it: single users, roles of their own."""
    rows = [line.split(":") for line in user_cfg.splitlines() if line]
    roles = {row[1]: row[2].split(",") for row in rows if row[0] == "role"}
    paths: dict[str, dict[str, set[str]]] = {row[1]: {} for row in rows if row[0] == "user"}
    for kind, *row in rows:
        if kind == "acl":
            _, path, users, given, *_ = row
            for user in users.split(","):
                held = {privilege for role in given.split(",") for privilege in roles[role]}
                paths[user].setdefault(path, set()).update(held)
    return {user: ROOT if user == "root@pam" else Privileges(found) for user, found in paths.items()}


def _allowed(privileges: Privileges, case: dict[str, Any], content: str = "") -> bool:
    try:
        volumes.check_access(privileges, case["volid"], case["vmid"], content)
    except PveError:
        return False
    return True


@pytest.mark.parametrize("case", ACCESS)
def test_access_to_volumes(case: dict[str, Any], etc_pve: Path) -> None:
    (etc_pve / "storage.cfg").write_text(ACCESS_AT["storage_cfg"])
    users = _privileges(ACCESS_AT["user_cfg"])
    assert sorted(user for user in users if _allowed(users[user], case)) == sorted(case["allowed_users"])
    assert sorted(user for user in users if not _allowed(users[user], case)) == sorted(case["denied_users"])
    found = [content for content in ACCESS_AT["types"] if _allowed(ROOT, case, content)]
    assert sorted(found) == sorted(case["allowed_types"])
