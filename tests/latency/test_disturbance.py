"""A device that changed while it was measured: what is read there, and what is made of it."""

import runpy
from dataclasses import replace

import pytest

from deploy_prune.device import ABOUT, RUNNERS
from deploy_prune.device.targets import load_target
from deploy_prune.latency.disturbance import FELL, ROSE_C, disturbance
from deploy_prune.latency.measure import measure
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.types import Artifact

HOST = load_target("host")


@pytest.fixture(scope="module")
def about():
    return runpy.run_path(str(ABOUT))


@pytest.fixture
def jetson(tmp_path):
    """A board's /sys and /proc, as Linux has them."""
    files = {
        "proc/device-tree/model": "NVIDIA Orin Nano\0",
        "proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd42\nFeatures\t: fp asimd\n",
        "proc/meminfo": "MemTotal:        7802680 kB\nMemFree: 1 kB\n",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone2/type": "no-temp\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "999000000\n",
    }
    for core, khz in enumerate((1510400, 729600)):
        place = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {
            f"{place}/scaling_cur_freq": f"{khz}\n",
            f"{place}/scaling_max_freq": "1510400\n",
            f"{place}/scaling_min_freq": "729600\n",
            f"{place}/scaling_governor": "schedutil\n",
        }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_a_board_tells(about, jetson):
    assert about["conditions"](jetson) == {
        "clock_mhz": 1510.4,
        "gpu_clock_mhz": 306.0,
        "temperatures_c": {"thermal_zone0 cpu-thermal": 48.5},
    }
    told = about["about"](jetson)
    assert (told["board"], told["memory_mib"]) == ("NVIDIA Orin Nano", 7619)
    assert (told["clock_max_mhz"], told["clock_min_mhz"], told["governors"]) == (1510.4, 729.6, ["schedutil"])
    assert about["cpu_name"](jetson) == "NVIDIA Orin Nano"


def test_what_is_not_told_is_left_out(about, tmp_path):
    assert about["conditions"](tmp_path) == {}
    assert not {"board", "memory_mib", "governors", "clock_max_mhz"} & set(about["about"](tmp_path))


def test_the_power_mode(about, tmp_path, monkeypatch):
    (tmp_path / "nvpmodel").write_text("#!/bin/sh\ntest $1 = -q && printf 'NV Power Mode: 15W\\n2\\n'\n")
    (tmp_path / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert about["power_mode"]() == "15W"
    (tmp_path / "nvpmodel").write_text("#!/bin/sh\nexit 1\n")
    assert about["power_mode"]() is None


def conditions(before, after):
    return {"before": before, "after": after}


def test_a_clock_that_fell():
    last = 2000 * (1 - FELL)
    assert disturbance(conditions({"clock_mhz": 2000}, {"clock_mhz": last + 1})) is None
    assert disturbance(conditions({"clock_mhz": 2000}, {"clock_mhz": 2400})) is None
    told = disturbance(conditions({"clock_mhz": 2000}, {"clock_mhz": last - 1}))
    assert told == "the clock fell from 2000 to 1799 MHz"
    told = disturbance(conditions({"gpu_clock_mhz": 1000}, {"gpu_clock_mhz": 500}))
    assert told == "the GPU's clock fell from 1000 to 500 MHz"


def test_a_temperature_that_rose():
    before = {"temperatures_c": {"cpu": 50.0, "gpu": 40.0}}
    assert disturbance(conditions(before, {"temperatures_c": {"cpu": 50 + ROSE_C, "gpu": 20.0}})) is None
    assert disturbance(conditions(before, {"temperatures_c": {"cpu": 66.0, "pll": 99.0}})) == (
        "cpu rose from 50 to 66 degrees"
    )


@pytest.mark.parametrize("told", [None, {}, [], "x", {"before": None}, {"before": {"clock_mhz": 2000}, "after": {}}])
def test_nothing_known_is_not_disturbed(told):
    assert disturbance(told) is None


@pytest.mark.parametrize("told", ["fast", None, [1]])
def test_nonsense_is_not_disturbed(told):
    assert disturbance(conditions({"clock_mhz": told}, {"clock_mhz": 1})) is None
    assert disturbance(conditions({"temperatures_c": told}, {"temperatures_c": {"a": told}})) is None


def test_a_measurement_is_marked(tmp_path, monkeypatch):
    from small_models import convolution

    artifact: Artifact = convolution(tmp_path / "c.onnx")
    clocks = [[2000, 2000], [2000, 1000], [2000, 2000]]

    def run(payload, spec, timeout_s):
        before, after = ({"clock_mhz": mhz} for mhz in clocks.pop(0))
        return {"samples_ms": [[1.0] * 10], "device": "board", "conditions": conditions(before, after)}

    monkeypatch.setitem(RUNNERS, "local", run)
    (quiet,) = measure(HOST, [artifact], runs=10, warmup=0)
    assert (quiet.disturbed, len(quiet.conditions)) == (None, 1)
    (latency,) = measure_steadily(replace(HOST), [artifact], 10, 0)
    assert latency.disturbed == "the clock fell from 2000 to 1000 MHz"
    assert [told["after"]["clock_mhz"] for told in latency.conditions] == [1000, 2000]
