"""Notes templates."""

import pytest

from pvetools.backup import notes

VALUES = {"cluster": "standalone node", "guestname": "web", "node": "pve1", "vmid": "100"}


def test_variables_are_replaced():
    text = notes.render("{{guestname}} ({{vmid}}) on {{node}}, {{cluster}}", VALUES)
    assert text == "web (100) on pve1, standalone node"


def test_escapes_come_first_and_values_are_left_alone():
    assert notes.render(r"a\nb\\n{{guestname}}", {**VALUES, "guestname": r"x\n{{vmid}}"}) == "a\nb\\nx\\n{{vmid}}"


@pytest.mark.parametrize("template", [r"a\t", "a\\", "{{name}}", "two\nlines"])
def test_what_is_wrong_is_named(template: str):
    with pytest.raises(ValueError, match=r"escape|variable|line"):
        notes.check(template)


def test_single_braces_are_text():
    assert notes.render("{node} {{ }", VALUES) == "{node} {{ }"
