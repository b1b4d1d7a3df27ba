"""Tell at the end what came of the inputs of each kind."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fuzz" and report.when == "teardown"
    ]
    if not told:
        return
    terminalreporter.section("hostile inputs")
    for kind, outcomes in told:
        ends = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
        terminalreporter.write_line(f"{kind:<14}{sum(outcomes.values()):>6}   {ends}")
    terminalreporter.write_line(f"{'in all':<14}{sum(sum(outcomes.values()) for _, outcomes in told):>6}")
