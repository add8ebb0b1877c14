"""Fuzz a packet format: ``python tests/fuzz TARGET [SECONDS]``, coverage-guided by atheris.

It begins with the kept corpus, and in the end keeps what of old and new inputs is needed for the
coverage reached. An input that breaks something is printed by libFuzzer and saved as ``crash-*``
in the current directory. Install atheris with ``pip install -e '.[fuzz]'``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import corpus

NAMES = ("llama-go", "llama-python", "stamp", "auth", "tlv")
LONGEST = 1472  # octets of UDP payload in an Ethernet frame


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer in this process; it does not return."""
    import atheris

    # What the targets share with the tests.
    sys.path.append(str(Path(__file__).parent.parent / "support"))
    with atheris.instrument_imports(include=["llama"]):
        import targets

    name, program, *options = arguments
    target = targets.TARGETS[name]
    atheris.Setup([program, *options], lambda data: target(bytes(data)))
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz one target in a process of its own, then keep the corpus that it leaves behind."""
    if (
        not arguments
        or arguments[0] not in NAMES
        or not "".join(arguments[1:]).isdecimal() | (len(arguments) == 1)
    ):
        print(f"usage: python tests/fuzz {{{','.join(NAMES)}}} [SECONDS]", file=sys.stderr)
        return 2
    name, seconds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 600
    with tempfile.TemporaryDirectory() as directory:
        # libFuzzer starts itself anew to merge, so this has to be one program.
        program = Path(directory, "fuzz")
        again = shlex.join([sys.executable, __file__, "--", name, str(program)])
        program.write_text(f'#!/bin/sh\nexec {again} "$@"\n')
        program.chmod(0o700)
        grown, kept = Path(directory, "grown"), Path(directory, "kept")
        grown.mkdir()
        kept.mkdir()
        for number, octets in enumerate(corpus.load(name)):
            (grown / f"kept-{number}").write_bytes(octets)
        limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=5",
                  "-rss_limit_mb=4096", "-print_final_stats=1"]  # fmt: skip
        ran = subprocess.run([program, *limits, grown], check=False)
        if ran.returncode:
            print(f"{name}: broken, see crash-* here and the traceback above", file=sys.stderr)
            return 1
        subprocess.run([program, "-merge=1", kept, grown], check=True)
        corpus.save(name, [path.read_bytes() for path in kept.iterdir()])
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        fuzz(sys.argv[2:])
    sys.exit(main(sys.argv[1:]))
