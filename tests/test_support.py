"""What tests are skipped, and where that is a failure."""

from pathlib import Path

import pytest
from boards import REQUIRED, need

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.adb
def test_of_a_device():
    pytest.skip("no-such-program is not installed")

@pytest.mark.adb
def test_of_a_device_that_has_nothing_to_test():
    pytest.skip("it needs none")

def test_of_something_else():
    pytest.skip("not today")
"""


def test_what_is_missing_is_named():
    need("sh")
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        need("sh", "no-such-program")


@pytest.mark.parametrize(("required", "failed"), [("", 0), ("ssh", 0), ("ssh adb", 1)])
def test_what_is_required_must_not_be_skipped(pytester, monkeypatch, required, failed):
    here = Path(__file__).parent
    monkeypatch.setenv(REQUIRED, required)
    monkeypatch.setenv("PYTHONPATH", str(here / "support"))
    pytester.makeconftest((here / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n adb: x\n ssh: x\n")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=failed, skipped=3 - failed)
