"""Make every cached asset that tests and the demo need: `python -m tests.sandbox.assets`.

Runs outside of the sandbox, whose network reaches no package mirror.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.sandbox import cache, image, template


def _image(kernel: str) -> Path:
    """The newest kernel's image; the one of before when the mirror does not give that kernel (any more)."""
    try:
        return image.build(kernel)
    except (cache.NotAvailable, RuntimeError) as error:
        found = image.newest(kernel)
        sys.stderr.write(f"keeping the older image: {error}\n")
        return found


def main() -> int:
    makers = {
        "container template": template.debian,
        "small container template": template.small,
        "VM image, cloud kernel": lambda: _image("cloud"),
        "VM image, generic kernel": lambda: _image("generic"),
    }
    for what, make in makers.items():
        start = time.monotonic()
        try:
            path = make()
        except (cache.NotAvailable, RuntimeError, OSError) as error:
            sys.stderr.write(f"{what}: {error}\n")
            return 1
        sys.stdout.write(f"{what}: {path} ({time.monotonic() - start:.1f} s)\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
