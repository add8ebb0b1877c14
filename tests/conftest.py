"""What holds for every test: where its files go, which come first and which alone, none is skipped."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from twisted.trial.unittest import SynchronousTestCase

from llama.net import mmsg

#: Folders of tests that mind neither a busy machine nor each other.
TOGETHER = {"cli", "config", "fuzz", "pinpoint", "project", "scraper", "web", "wire"}

# Processes that tests start, hundreds of them, compile LLAMA once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A busy machine is slow: that is no fault of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _trial_files(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Put what ``mktemp`` of a trial test names with pytest's temporary files.

    trial's own runner works in a directory of its own; under pytest it would be the checkout.
    """
    directory = tmp_path_factory.mktemp("trial")

    def mktemp(case: SynchronousTestCase) -> str:
        return os.path.join(tempfile.mkdtemp(dir=directory), "temp")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SynchronousTestCase, "mktemp", mktemp)
        yield


@pytest.fixture(autouse=True, scope="session")
def _kernel_stamps() -> Generator[None, None, None]:
    """Keep a socket that asks for receive stamps: the kernel takes none until a moment after."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if sys.platform.startswith("linux"):
            flags = mmsg.SOF_RX_SOFTWARE | mmsg.SOF_SOFTWARE
            asking.setsockopt(mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, flags)
            asking.bind(("127.0.0.1", 0))
            asking.settimeout(5)
            until, stamped = time.monotonic() + 5, False
            while not stamped:
                assert time.monotonic() < until, "the kernel takes no receive stamps"
                asking.sendto(b"", asking.getsockname())
                stamped = bool(asking.recvmsg(1, 256)[1])
                time.sleep(0.001)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a quieter machine, all that is not known for another; have the page's tests first.

    What those show was measured until they were collected.
    """
    folders = {item: item.path.relative_to(item.config.rootpath).parts[1] for item in items}
    for item, folder in folders.items():
        if folder not in TOGETHER:
            item.add_marker("quiet")
    items.sort(key=lambda item: folders[item] != "web")


def _must_run() -> bool:
    return os.environ.get("LLAMA_NO_SKIP", "") not in ("", "0")


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped although LLAMA_NO_SKIP is set: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _must_run() and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if _must_run() and report.skipped:
        _fail(report)
    return report
