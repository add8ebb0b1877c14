"""What holds for every test: where its files go, and that none is skipped where all must run."""

import os
import tempfile
from collections.abc import Generator

import pytest
from twisted.trial.unittest import SynchronousTestCase


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
