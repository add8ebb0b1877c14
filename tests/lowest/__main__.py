"""LLAMA with the oldest dependencies that pyproject.toml allows.

``make lowest`` puts them into a virtual environment, which is made again when the bounds change, and
there imports every module, asks every command for its help, and lets all four services work
together for a moment, over TLS where they can. A bound is ``NAME>=VERSION`` of a version that
exists. They have wheels for the oldest Python that LLAMA runs on; for another nothing is checked.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent.parent
LLAMA = "from llama.cli import main; main()"
PATIENCE_S = 60.0


def bounds() -> list[str]:
    """Return ``NAME==VERSION`` for every dependency at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = [*project["dependencies"], *project["optional-dependencies"]["tls"]]
    pinned = []
    for each in given:
        bound = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", each)
        if not bound:
            sys.exit(f"pyproject.toml: {each!r}, expected NAME>=VERSION")
        pinned.append(f"{bound[1]}=={bound[2]}")
    return pinned


def oldest_python() -> str | None:
    """Return the oldest Python that LLAMA runs on, if it is on this machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["requires-python"].removeprefix(">=")
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    return shutil.which(f"python{version}")


def environment(directory: Path, python: str) -> str:
    """Return the interpreter of an environment that holds the bounds, made unless it is there."""
    inside, stamp = directory / "bin" / "python", directory / "bounds"
    wanted = "\n".join((os.path.realpath(python), *bounds()))
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", directory], check=True)
        install = [inside, "-m", "pip", "install", "-qq", "--only-binary", ":all:"]
        subprocess.run([*install, *bounds()], check=True)
        stamp.write_text(wanted)
    return str(inside)


def modules() -> int:
    """Import all of LLAMA; returns how many modules that is."""
    import llama

    names = [found.name for found in pkgutil.walk_packages(llama.__path__, "llama.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def commands() -> int:
    """Ask every command of ``llama`` for its help; returns how many there are."""
    import click
    from click.testing import CliRunner

    from llama.cli import main

    def ask(command: click.Command, *words: str) -> int:
        asked = CliRunner().invoke(main, [*words, "--help"])
        if asked.exit_code:
            sys.exit(f"llama {' '.join(words)} --help: {asked.output}{asked.exception!r}")
        if not isinstance(command, click.Group):
            return 1
        context = click.Context(command)
        below = {
            name: command.get_command(context, name) for name in command.list_commands(context)
        }
        return 1 + sum(ask(each, *words, name) for name, each in below.items() if each)

    return ask(main)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of localhost that nobody has."""
    with socket.socket(type=kind) as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for something, within reason."""
    end = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.2)


def text_at(url: str) -> str:
    """Return what is answered at a URL; nothing while there is nobody."""
    try:
        with urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@contextmanager
def running(directory: Path, name: str, *words: str) -> Iterator[None]:
    """Run a program meanwhile; it must end when asked to, without a traceback."""
    log = directory / f"{name}.log"
    with log.open("w") as file:
        program = subprocess.Popen(
            [sys.executable, *words], cwd=directory, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield
        assert program.poll() is None, "it has ended"
        program.send_signal(signal.SIGTERM)
        program.wait(PATIENCE_S)
        assert "Traceback" not in log.read_text(), "a traceback"
    except Exception:
        print(f"--- {name}\n{log.read_text()}", file=sys.stderr)
        raise
    finally:
        program.kill()
        program.wait()


def mistaken(directory: Path, command: list[str]) -> None:
    """See that a service ends at once with its configuration's mistake, and nothing else."""
    (directory / "mistake.yaml").write_text("store: 3\n")
    words = [sys.executable, *command[:-1], "mistake.yaml"]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert not done.stdout, done
    assert done.stderr.startswith("mistake.yaml:1: "), done


def services(directory: Path) -> None:
    """Let a reflector, a collector, a scraper and the web page work together until each has worked."""
    from self_signed import self_signed

    probed = free_port(socket.SOCK_DGRAM)
    api, asked, scraper, web = (free_port() for _ in range(4))
    self_signed(directory / "key.pem", directory / "certificate.pem")
    (directory / "collector.yaml").write_text(
        f"summarization: {{interval: 1}}\ntests: [{{targets: t}}]\n"
        f"targets: {{t: [{{ip: 127.0.0.1, port: {probed}}}]}}\n"
        f"api: {{bind: 'ssl:{asked}:privateKey=key.pem:certKey=certificate.pem'}}\n"
    )
    (directory / "scraper.yaml").write_text(
        f"interval: 1s\ncollectors: ['https://127.0.0.1:{asked}']\nca_file: certificate.pem\n"
        f"writers: [{{type: sqlite, path: store.db}}]\nspool: {{path: spool.db}}\n"
        f"api: {{bind: '127.0.0.1:{scraper}'}}\n"
    )
    (directory / "web.yaml").write_text(
        f"store: {{type: sqlite, path: store.db}}\nlisten: '127.0.0.1:{web}'\n"
    )

    def answered() -> bool:
        words = ["-c", LLAMA, "send", f"127.0.0.1:{probed}", "--count", "1"]
        return not subprocess.run([sys.executable, *words], capture_output=True).returncode

    def scraped() -> bool:
        lines = text_at(f"http://127.0.0.1:{scraper}/metrics").splitlines()
        return any(
            "scraper_points_written_total" in line and float(line.split()[-1]) > 0
            for line in lines
            if not line.startswith("#")
        )

    def twistd(name: str) -> list[str]:
        program = str(Path(sys.executable).parent / "twistd")
        return [program, "-n", "--pidfile=", f"llama-{name}", "-c", f"{name}.yaml"]

    mistaken(directory, twistd("web"))
    reflect = ("-c", LLAMA, "reflect", "--port", str(probed), "--api", f"127.0.0.1:{api}")
    with running(directory, "reflect", *reflect):
        until(answered, "an answer from llama reflect")
        with (
            running(directory, "collector", *twistd("collector")),
            running(directory, "scraper", *twistd("scraper")),
            running(directory, "web", *twistd("web")),
        ):
            until(scraped, "measurements in the store")
            until(lambda: "<html" in text_at(f"http://127.0.0.1:{web}/"), "the page")
            until(
                lambda: bool(text_at(f"http://127.0.0.1:{api}/metrics")), "the reflector's figures"
            )


def main() -> None:
    """Make the environment and go on there, or, there, try everything."""
    if len(sys.argv) > 1:
        python = oldest_python()
        if python is None:
            why = "lowest versions: not checked, the oldest Python that LLAMA runs on is not here"
            if os.environ.get("LLAMA_NO_SKIP"):
                sys.exit(why)
            print(why)
            return
        inside = environment(Path(sys.argv[1]).absolute(), python)
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
        done = subprocess.run([inside, __file__], env=os.environ | {"PYTHONPATH": path})
        sys.exit(done.returncode)
    print("lowest versions:", ", ".join(bounds()))
    print(f"{modules()} modules, {commands()} commands")
    with tempfile.TemporaryDirectory() as directory:
        services(Path(directory))
    print("the services work")


if __name__ == "__main__":
    main()
