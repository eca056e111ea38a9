"""What this server is (facts) and how busy it is (load)."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import structlog

from wire.join import host_id
from wire.messages import Device, Facts, Load, RuntimeInfo

try:
    import pynvml
except ImportError:  # a server without NVIDIA's library needs no package for it
    pynvml = None

log = structlog.get_logger(__name__)
_nvml_ready = False


def own_host_id() -> str:
    """Same for all nodes that share this machine's loopback (`wire.join.host_id`)."""
    machine_id = _first_text("/etc/machine-id", "/var/lib/dbus/machine-id") or f"{platform.node()}"
    boot_id = _first_text("/proc/sys/kernel/random/boot_id") or "no-boot-id"
    return host_id(machine_id, boot_id, _network())


def _network() -> str:
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:  # not Linux: one loopback a machine
        return ""


def _first_text(*paths: str) -> str:
    for path in paths:
        with contextlib.suppress(OSError):
            text = Path(path).read_text().strip()
            if text:
                return text
    return ""


def own_addresses() -> tuple[str, ...]:
    """IP addresses of this machine that others may reach; loopback when there is no other."""
    found = []
    for interface, addresses in sorted(psutil.net_if_addrs().items()):
        if interface.startswith(("lo", "docker", "br-", "veth", "virbr", "cni", "flannel")):
            continue
        for address in addresses:
            text = address.address.split("%")[0]
            if address.family in (socket.AF_INET, socket.AF_INET6) and not text.lower().startswith("fe80:"):
                found.append(text)
    return tuple(found) or ("127.0.0.1",)


def read_facts(runtimes: tuple[RuntimeInfo, ...], *, relay_port: int, addresses: tuple[str, ...]) -> Facts:
    return Facts(
        hostname=socket.gethostname(),
        host_id=own_host_id(),
        os=_os_name(),
        cpu_model=_cpu_model(),
        cpu_count=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        runtimes=runtimes,
        relay_port=relay_port,
        addresses=addresses,
    )


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{platform.system()} {platform.release()}"


@cache
def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_load(home: Path) -> Load:
    """Load now. CPU is measured since the call before (0 at the first)."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(home))
    return Load(
        cpu_percent=psutil.cpu_percent(interval=None),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
        devices=read_devices(),
        load_1m=psutil.getloadavg()[0],
    )


def read_devices() -> tuple[Device, ...]:
    """GPUs as NVML reports them; none where there is no driver."""
    if not _nvml_works():
        return ()
    try:
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        log.warning("nvml.failed", error=str(error))
        return ()
    devices = []
    for index in range(count):
        try:
            devices.append(_device(index))
        except pynvml.NVMLError as error:  # one that fell off the bus hides no other
            log.warning("nvml.device_failed", index=index, error=str(error))
    return tuple(devices)


def _nvml_works() -> bool:
    """Asked again each time until it does: a driver may be loaded after the agent started."""
    global _nvml_ready
    if pynvml is None:
        return False
    if not _nvml_ready:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return False
        _nvml_ready = True
    return True


def _device(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError:  # not offered by MIG and some older devices
        utilization = 0.0
    return Device(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        utilization_percent=utilization,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
