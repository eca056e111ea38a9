"""Facts and load of this machine; GPUs by a fake of NVML."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import psutil
import pynvml
import pytest

from agent import resources
from agent.resources import own_addresses, own_host_id, read_devices, read_facts, read_load
from tests.fakes.nvml import GIB, FakeGpu, FakeNvml
from wire.messages import Device


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(resources, "pynvml", fake)
    monkeypatch.setattr(resources, "_nvml_ready", False)
    return fake


def test_the_fake_has_only_functions_that_pynvml_has_with_the_same_parameters() -> None:
    for name, function in inspect.getmembers(FakeNvml, inspect.isfunction):
        if name.startswith("nvml"):
            ours = list(inspect.signature(function).parameters)[1:]
            theirs = list(inspect.signature(getattr(pynvml, name)).parameters)
            assert ours == theirs[: len(ours)], name


def test_gpus_are_in_the_load(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=3 * GIB, gpu=42), FakeGpu(name="NVIDIA L4", uuid="GPU-b", total=24 * GIB)]
    first, second = read_load(tmp_path).devices
    assert first == Device(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-a",
        memory_total_bytes=80 * GIB,
        memory_used_bytes=3 * GIB,
        utilization_percent=42.0,
    )
    assert (second.index, second.name, second.memory_total_bytes) == (1, "NVIDIA L4", 24 * GIB)


def test_nvml_is_made_ready_once(nvml: FakeNvml) -> None:
    nvml.gpus = [FakeGpu()]
    read_devices()
    read_devices()
    assert nvml.initialized == 1


def test_without_a_driver_there_are_no_gpus_and_the_rest_of_the_load_is_there(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.init_error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    load = read_load(tmp_path)
    assert load.devices == ()
    assert load.memory_total_bytes == psutil.virtual_memory().total


def test_without_the_package_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "pynvml", None)
    assert read_devices() == ()


def test_a_driver_that_is_loaded_later_is_found(nvml: FakeNvml) -> None:
    nvml.gpus = [FakeGpu()]
    nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert read_devices() == ()
    nvml.init_error = None
    assert len(read_devices()) == 1


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN])
def test_a_device_that_errors_hides_no_other(nvml: FakeNvml, code: int) -> None:
    nvml.gpus = [FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b", broken=code), FakeGpu(uuid="GPU-c")]
    assert [(device.index, device.uuid) for device in read_devices()] == [(0, "GPU-a"), (2, "GPU-c")]


def test_a_device_that_tells_no_utilization_is_shown_all_the_same(nvml: FakeNvml) -> None:
    nvml.gpus = [FakeGpu(gpu=None)]
    (device,) = read_devices()
    assert device.utilization_percent == 0.0


def test_a_driver_that_fails_altogether_is_no_gpus(nvml: FakeNvml) -> None:
    nvml.count_error = pynvml.NVML_ERROR_UNKNOWN
    assert read_devices() == ()


def test_names_that_older_bindings_give_as_bytes_are_read() -> None:
    assert resources._text(b"Tesla T4") == "Tesla T4"


def test_load_and_facts_are_of_this_machine(tmp_path: Path) -> None:
    load, facts = read_load(tmp_path), read_facts((), relay_port=8444, addresses=("10.0.0.1",))
    assert 0 <= load.cpu_percent <= 100
    assert 0 < load.disk_free_bytes <= load.disk_total_bytes
    assert 0 < load.memory_available_bytes <= load.memory_total_bytes == facts.memory_bytes
    assert facts.cpu_count == os.cpu_count()
    assert facts.host_id == own_host_id()
    assert all((facts.hostname, facts.os, facts.cpu_model))
    assert "127.0.0.1" not in own_addresses() or own_addresses() == ("127.0.0.1",)
