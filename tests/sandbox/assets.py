"""Make every cached asset that tests and the demo need: `python -m tests.sandbox.assets`.

Runs outside of the sandbox, whose network reaches no package mirror.
"""

from __future__ import annotations

import sys
import time

from tests.sandbox import cache, image, template


def main() -> int:
    makers = {
        "container template": template.debian,
        "small container template": template.small,
        "VM image, cloud kernel": image.build,
        "VM image, generic kernel": lambda: image.build("generic"),
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
