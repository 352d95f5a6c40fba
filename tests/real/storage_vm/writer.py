"""A tiny guest for emulation in emulation: a boot sector that writes numbered sectors, and a point for each.

It writes its n-th sector (from 1) at START + n, beginning with n as 32 bits, waits for the disk's answer, and then says
``.`` on the serial port (``E`` where the disk reported an error; that sector is tried again), and waits for the next
tick of the timer. Its source:

    xor %ax,%ax; mov %ax,%ds; mov %ax,%es; mov %ax,%ss; mov $0x7c00,%sp; mov %dl,drive
    next:   mov counter,%eax; cmp $50000,%eax; jae done; mov %eax,0x8000; add $2048,%eax; mov %eax,lba
            mov $packet,%si; mov $0x4300,%ax; mov drive,%dl; int $0x13; mov $0x3f8,%dx; jc failed
            incl counter; mov $'.',%al; out %al,%dx; hlt; jmp next
    failed: mov $'E',%al; out %al,%dx; hlt; jmp next
    done:   hlt; jmp done
    drive: .byte 0; counter: .long 1; packet: .byte 16,0; .word 1,0x8000,0; lba: .long 0,0
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfb8816507c66a1517c663d50c30000733066a3008066050008000066a35d7cbe557cb800438a16507ccd13"
    "baf803720b66ff06517cb02eeef4ebcab045eef4ebc4f4ebfd000100000010000100008000000000000000000000"
)
SECTOR, START, MOST = 512, 2048, 50000
SIZE = 32 << 20
DATA = 28 << 20  # behind what it writes: random data that must stay


def image(path: Path) -> Path:
    """A disk that it boots from."""
    noise = random.Random(7).randbytes(1 << 20)
    with path.open("wb") as file:
        file.write(CODE.ljust(510, b"\0") + b"\x55\xaa")
        file.seek(DATA)
        file.write(noise)
        file.seek(SIZE - len(noise))
        file.write(noise)
    return path


def numbers(content: bytes) -> int:
    """How many sectors it has written without a gap."""
    for number in range(1, MOST):
        place = (START + number) * SECTOR
        if content[place : place + 4] != struct.pack("<I", number):
            return number - 1
    return MOST
