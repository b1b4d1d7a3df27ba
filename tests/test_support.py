"""What tests are skipped, and where that is a failure."""

import pytest
from boards import REQUIRED, need


def test_what_is_missing_is_skipped_unless_it_is_required(monkeypatch):
    monkeypatch.delenv(REQUIRED, raising=False)
    need("ssh", "sh")
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        need("ssh", "sh", "no-such-program")
    monkeypatch.setenv(REQUIRED, "adb ssh")
    with pytest.raises(pytest.fail.Exception, match="has ssh, but no-such-program is not installed"):
        need("ssh", "no-such-program")
