"""Runs a program with the system calls and address families that a unit file leaves it.

``python confined.py UNIT PROGRAM [ARGUMENT]...``: what ``SystemCallFilter=``, ``SystemCallErrorNumber=``
and ``RestrictAddressFamilies=`` of the unit say, done by libseccomp as systemd does it, with no
capabilities and no new privileges. What a unit sees of the file system is not done.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, FAIL = 0x7FFF0000, 0x00050000
EQUAL = 4
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


class Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def seccomp() -> ctypes.CDLL:
    """Return libseccomp; raises `OSError` where there is none."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def words(unit: str, setting: str) -> list[str]:
    """Return what a unit says of one setting."""
    return re.findall(rf"(?m)^{setting}=(.*)$", unit)[-1].split()


def calls_of(name: str) -> set[str]:
    """Return the system calls that a name of systemd's stands for."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    lines = {line.strip() for line in listed} - {""}
    return set().union(*(calls_of(line) for line in lines if not line.startswith("#")))


def confine(unit: str) -> None:
    """Confine this process, and what it becomes, for good."""
    library, libc = seccomp(), ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refusal = getattr(errno, words(unit, "SystemCallErrorNumber")[0])
    rules = library.seccomp_init(FAIL | refusal)
    calls = set().union(*map(calls_of, ["@default", *words(unit, "SystemCallFilter")]))
    for call in calls - {"socket"}:
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            library.seccomp_rule_add_array(rules, ALLOW, number, 0, None)
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in words(unit, "RestrictAddressFamilies"):
        this = Comparison(0, EQUAL, getattr(socket, family), 0)
        library.seccomp_rule_add_array(rules, ALLOW, number, 1, ctypes.byref(this))
    if library.seccomp_load(rules):
        raise OSError("the kernel does not take the filter")


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text())
    os.execvp(sys.argv[2], sys.argv[2:])
