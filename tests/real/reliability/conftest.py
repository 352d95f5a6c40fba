"""Fixtures of the reliability tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.reliability.scenes import Material, image
from tests.sandbox.zygote import QuickRoot, Zygote, quick_root, running


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory, ct_template_small: Path) -> Material:
    return Material(image(tmp_path_factory.mktemp("material")), ct_template_small)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with running() as found:
        yield found


@pytest.fixture
def base(zygote: Zygote) -> Iterator[QuickRoot]:
    with quick_root(zygote) as root:
        yield root
