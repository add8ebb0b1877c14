"""LLAMA with the implementations of others that are on this machine, in both roles: `make interop`.

``python tests/interop NAME=COMMAND…`` runs peers that it is given; it fetches and builds none. Known
names, each a path to what is there already:

  twampy=PATH              nokia/twampy, as TWAMP-Light responder and sender: the folder that its
                           package is in (src), or the single script that it used to be
  llama-go-reflector=FILE  LLAMA Go's reflector
  llama-go-collector=FILE  LLAMA Go's collector

Anything else is a template of a command: ``reflector:KIND=COMMAND`` is a reflector that `llama send
--probe KIND` asks, ``sender:NAME=COMMAND`` a sender that asks our reflector and ends by itself.
``{port}`` stands for the UDP port, ``{host}`` for 127.0.0.1, ``{python}`` for this Python. For
stamp-auth, ``{key}`` is the key in hexadecimal.

A sender passes if our reflector answered it and dropped nothing; a reflector passes if no probe was lost.
Ends with 0 if every peer named passed, 1 if one failed, 2 if one is missing or nothing was named.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

KEY = "6c6c616d6120696e7465726f70206b6579202d2d2d2d2d2d2d2d2d2d2d2d2d2d"
KINDS = ("stamp", "stamp-auth", "twamp-light", "llama-go", "llama-python")
BIN = Path(sys.executable).parent
GO_COLLECTOR = """\
summarization: {{interval: 1, handlers: 1}}
api: {{bind: "127.0.0.1:{api}"}}
ports: {{default: {{ip: 127.0.0.1, port: 0, tos: 0, timeout: 500}}}}
port_groups: {{default: [{{port: default, count: 2}}]}}
rate_limits: {{default: {{cps: 4.0}}}}
tests: [{{targets: default, port_group: default, rate_limit: default}}]
targets: {{default: [{{ip: 127.0.0.1, port: {port}, tags: {{dst_hostname: ours}}}}]}}
"""
KNOWN = {  # name -> the roles that it plays: (role, kind or name, command)
    "twampy": [
        ("reflector", "twamp-light", "{script} responder {host}:{port}"),
        ("sender", "twampy", "{script} sender {host}:{port} -c 20 -i 100 --padding 30"),
    ],
    "llama-go-reflector": [("reflector", "llama-go", "{file} -port {port}")],
    "llama-go-collector": [("sender", "llama-go-collector", "{file} -llama.config {config}")],
}


@dataclass
class Row:
    """One line of the table."""

    peer: str
    role: str
    verdict: str
    said: str


def free_port(kind: int = socket.SOCK_DGRAM) -> int:
    """Return a port of 127.0.0.1 that nothing listens on just now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def stop(process: subprocess.Popen[str]) -> None:
    """End a program that we started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    """Start a program; what it says goes to a file."""
    with log.open("w") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, text=True, cwd=log.parent
        )


def last_line(log: Path) -> str:
    """Return the last line that a program said."""
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def send(kind: str, port: int, count: int, folder: Path) -> dict[str, int] | str:
    """Return the counts of `llama send` to a port, or why it has none."""
    keys = folder / "keys"
    command = [str(BIN / "llama"), "send", f"127.0.0.1:{port}", "--probe", kind, "--json",
               "--count", str(count), "--interval", "0.05"]  # fmt: skip
    if kind == "stamp-auth":
        command += ["--key-file", str(keys)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    try:
        total: dict[str, int] = json.loads(done.stdout.splitlines()[-1])["total"]
    except (IndexError, KeyError, ValueError):
        return (done.stderr.strip().splitlines() or ["llama send said nothing"])[-1]
    return total


def ask_reflector(kind: str, command: list[str], port: int, folder: Path) -> tuple[bool, str]:
    """Ask a peer's reflector; return whether nothing was lost, and what to say."""
    log = folder / "reflector.log"
    process = start(command, log)
    try:
        give_up = time.monotonic() + 15
        while True:  # until it answers a first probe
            first = send(kind, port, 1, folder)
            if isinstance(first, str):
                return False, first
            if first["received"]:
                break
            if process.poll() is not None:
                return False, f"it ended: {last_line(log)}"
            if time.monotonic() > give_up:
                return False, f"it never answered: {last_line(log)}"
        total = send(kind, port, 40, folder)
    finally:
        stop(process)
    if isinstance(total, str):
        return False, total
    said = f"{total['sent']} sent, {total['received']} received, {total['lost']} lost"
    return total["sent"] > 0 and not total["lost"], said


def counters(api: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return what our reflector has answered, by format, and dropped, by reason."""
    address = f"http://127.0.0.1:{api}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, int]] = {"answered": {}, "dropped": {}}
    for line in text.splitlines():
        for name, counts in found.items():
            if line.startswith(f"llama_reflector_{name}_total{{"):
                label, _, value = line.partition('"')[2].partition('"} ')
                if float(value):
                    counts[label] = int(float(value))
    return found["answered"], found["dropped"]


def be_asked(command: list[str], port: int, folder: Path) -> tuple[bool, str]:
    """Let a peer's sender ask our reflector; return whether all went well, and what to say."""
    api = free_port(socket.SOCK_STREAM)
    config = folder / "reflector.yaml"
    config.write_text(
        f"addresses: 127.0.0.1\nport: {port}\napi: {{bind: '127.0.0.1:{api}'}}\nallow: 127.0.0.0/8\n"
        f"keys: [{{file: {folder / 'keys'}}}]\nallow_unauthenticated: true\n"
    )
    ours = start(
        [str(BIN / "twistd"), "-n", "--pidfile=", "llama-reflector", "--config", str(config)],
        folder / "ours.log",
    )
    peer = None
    try:
        give_up = time.monotonic() + 30
        while "answering" not in (folder / "ours.log").read_text():
            if ours.poll() is not None or time.monotonic() > give_up:
                return False, f"our reflector: {last_line(folder / 'ours.log')}"
            time.sleep(0.1)
        log = folder / "sender.log"
        peer = start(command, log)
        try:
            code: int | None = peer.wait(15)  # a collector does not end by itself
        except subprocess.TimeoutExpired:
            code = None
        stop(peer)
        answered, dropped = counters(api)
    finally:
        if peer is not None:
            stop(peer)
        stop(ours)
    if code:
        return False, f"it ended with {code}: {last_line(log)}"
    said = ", ".join(f"{count} {name} answered" for name, count in answered.items())
    said += "".join(f", {count} dropped ({reason})" for reason, count in dropped.items())
    return bool(answered) and not dropped, said or f"it asked nothing: {last_line(log)}"


def roles_of(argument: str) -> list[tuple[str, str, str]] | str:
    """Return (role, kind or name, command) of what is named, or what is wrong with it."""
    name, equals, what = argument.partition("=")
    role, colon, kind = name.partition(":")
    if not equals or not what:
        return "expected NAME=COMMAND"
    if name in KNOWN:
        package = Path(what) / name / "__main__.py"
        if not Path(what).is_file() and not package.is_file():
            return f"missing: {what} is not there, or not what it should be"
        file = shlex.quote(str(Path(what).absolute()))
        script = f"{{python}} {file}"
        if package.is_file():
            script = f"env PYTHONPATH={file} {{python}} -m {name}"
        return [
            (role, kind, text.replace("{file}", file).replace("{script}", script))
            for role, kind, text in KNOWN[name]
        ]
    if not colon or role not in ("reflector", "sender"):
        return f"known are {', '.join(KNOWN)}, reflector:KIND and sender:NAME"
    if role == "reflector" and kind not in KINDS:
        return f"{kind!r} is no kind of probe: {', '.join(KINDS)}"
    program = shlex.split(what)[0].replace("{python}", sys.executable)
    if shutil.which(program) is None:
        return f"missing: {program} is not there"
    return [(role, kind, what)]


def run(argument: str) -> list[Row]:
    """Try one peer in its roles."""
    name = argument.partition("=")[0]
    roles = roles_of(argument)
    if isinstance(roles, str):
        return [Row(name, "", "MISSING" if roles.startswith("missing") else "WRONG", roles)]
    rows = []
    for role, kind, text in roles:
        with tempfile.TemporaryDirectory(prefix="llama-interop-") as temporary:
            folder, port = Path(temporary), free_port()
            (folder / "keys").write_text(f"interop {KEY}\n")
            (folder / "keys").chmod(0o600)
            config = folder / "collector.yaml"
            config.write_text(GO_COLLECTOR.format(api=free_port(socket.SOCK_STREAM), port=port))
            values = {"port": port, "host": "127.0.0.1", "key": KEY, "config": config,
                      "python": sys.executable}  # fmt: skip
            for word, value in values.items():
                text = text.replace(f"{{{word}}}", shlex.quote(str(value)))
            try:
                if role == "reflector":
                    good, said = ask_reflector(kind, shlex.split(text), port, folder)
                else:
                    good, said = be_asked(shlex.split(text), port, folder)
            except OSError as error:
                good, said = False, str(error)
        rows.append(Row(name, role, "ok" if good else "FAILED", said))
    return rows


def main(arguments: list[str]) -> int:
    """Try all peers named; print a table."""
    if not arguments:
        print((__doc__ or "").partition("\n\n")[2])
        print('no peer is named; for instance: make interop ARGS="twampy=/opt/twampy/src"')
        return 2
    os.environ["PYTHONUNBUFFERED"] = "1"
    rows = [row for argument in arguments for row in run(argument)]
    width = max(len(row.peer) for row in rows)
    print(f"{'peer':{width}}  {'role':9}  {'':7}  what was seen")
    for row in rows:
        print(f"{row.peer:{width}}  {row.role:9}  {row.verdict:7}  {row.said}")
    verdicts = {row.verdict for row in rows}
    return 2 if verdicts & {"MISSING", "WRONG"} else int("FAILED" in verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
