"""Runs the completion script in a real bash, as readline would call it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "completions/pvetools.bash"


def split(line: str) -> list[str]:
    """Words as bash cuts them for completion: blanks, and the word breaks `=` and `:`."""
    words = re.findall(r"[=:]+|[^\s=:]+", line)
    return [*words, ""] if line.endswith(" ") else words


def call(line: str) -> str:
    """Bash code that sets the variables for a line with the cursor at its end, and calls the function."""
    words = split(line)
    quoted = " ".join(shlex.quote(word) for word in words)
    return (
        f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}\n"
        f'_pvetools {words[0]} "${{COMP_WORDS[COMP_CWORD]}}" ""\n'
    )


def bash(code: str, root: Path | None, *options: str) -> str:
    """Output of a bash that has sourced the script; anything on standard error fails."""
    environment = {**os.environ, "PVETOOLS_ROOT": str(root)} if root else dict(os.environ)
    done = subprocess.run(
        ["bash", "--norc", *options],
        input=f"source {shlex.quote(str(SCRIPT))}\n{code}",
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def complete(line: str, root: Path | None = None) -> list[str]:
    """What TAB offers at the end of a line, sorted; only the part behind the last word break, as readline wants it."""
    out = bash(call(line) + r'((${#COMPREPLY[@]})) && printf "%s\n" "${COMPREPLY[@]}"', root)
    return sorted(out.splitlines())
