"""Public cases of configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvetools.config import guest, pending
from pvetools.system.errors import ConfigError
from tests.conformance import loader

VMID = 8006


@pytest.mark.parametrize("mode", ["strict", "non-strict"])
@pytest.mark.parametrize("folder", loader.folders("qemu-parse-config"))
def test_a_vm_file_is_rewritten_as_expected(folder: Path, mode: str) -> None:
    text = (folder / "input.conf").read_text()
    error = folder / f"{mode}.error"
    if error.exists():
        with pytest.raises(ConfigError) as caught:
            guest.verify(guest.parse("qemu", VMID, text, strict=True))
        assert f"vm {VMID} - {caught.value.reason}" == error.read_text().rstrip("\n")
        return
    config = guest.parse("qemu", VMID, text, strict=mode == "strict")
    guest.verify(config, strict=mode == "strict")
    assert config.canonical() == (folder / "expected.conf").read_text()


def _texts(value: Any) -> Any:
    """Numbers and numeric texts are the same in these suites."""
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    return value if value is None else str(value)


def _forced(keys: dict[str, Any]) -> dict[str, bool]:
    return {key: bool(int(value["force"])) for key, value in keys.items()}


def _on_pending(case: dict[str, Any]) -> Any:
    config, *rest = case["params"]
    if case["function"] == "parse_pending_delete":
        return {key: {"force": int(force)} for key, force in pending.parse_delete(config).items()}
    if case["function"] == "print_pending_delete":
        return pending.format_delete(_forced(config))
    config = _texts(config)
    changes = config.setdefault("pending", {})
    if case["function"] == "add_to_pending_delete":
        pending.add_delete(changes, rest[0], force=bool(rest[1:] and rest[1]))
    elif case["function"] == "remove_from_pending_delete":
        pending.drop_delete(changes, rest[0])
    elif case["function"] == "cleanup_pending":
        pending.clean({key: value for key, value in config.items() if key != "pending"}, changes)
    else:
        pytest.skip(f"no counterpart of {case['function']}")
    return config


@pytest.mark.parametrize("case", loader.table("common/pending_changes")[0])
def test_pending_changes(case: dict[str, Any]) -> None:
    assert _texts(_on_pending(case)) == _texts(case["expected"])
