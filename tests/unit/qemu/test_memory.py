"""Memory: what a balloon cannot do yet is told at start, never passed over."""

import pytest

from tests.unit.qemu.places import define


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory: 512\n", []),
        ("memory: 512\nballoon: 0\n", []),
        ("memory: 512\nballoon: 512\nshares: 1000\n", []),
        ("memory: 512\nballoon: 256\n", ["balloon: 256 has no effect yet"]),
        ("memory: 512\nshares: 2000\n", ["shares: 2000 has no effect yet"]),
        ("memory: 512\nballoon: 256\nshares: 0\n", ["shares: 0 has no effect yet", "balloon: 256 has no effect yet"]),
    ],
)
def test_what_has_no_effect_yet_is_told(text, words):
    warnings = define(text).warnings
    assert len(warnings) == len(words)
    for warning, word in zip(warnings, words, strict=True):
        assert word in warning
