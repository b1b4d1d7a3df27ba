import pytest

from deploy_prune.report.units import amount, digits, heading, percent, plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.04123, "0.0412"),
        (3.14159, "3.14"),
        (27.249, "27.2"),
        (999.6, "1000"),
        (9.996, "10.0"),
        (1280, "1280"),
    ],
)
def test_three_significant_digits(value, text):
    assert digits(value) == text


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.8684, "latency", "0.868 ms"),
        (59_600_000, "macs", "59.6 MMACs"),
        (2_230_277, "params", "2.23 M"),
        (8_981_108, "size", "8.98 MB"),
        (None, "latency", "–"),
    ],
)
def test_amounts_carry_their_unit(value, metric, text):
    assert amount(value, metric) == text


def test_plain_leaves_the_unit_to_the_header():
    assert plain(59_600_000, "macs") == "59.6"


def test_percent():
    assert (percent(0.9834), percent(0.012, signed=True), percent(-0.04, signed=True)) == ("98.3%", "+1.2%", "-4.0%")
    assert (percent(-0.0001, signed=True), percent(-0.0001)) == ("+0.0%", "0.0%")
    assert percent(None) == "–"


@pytest.mark.parametrize(
    ("name", "begun"),
    [("accuracy", "Accuracy"), ("end-point error", "End-point error"), ("mAP50-95", "mAP50-95"), ("mIoU", "mIoU")],
)
def test_a_name_with_capitals_of_its_own_keeps_them_in_a_heading(name, begun):
    assert heading(name) == begun
