"""NVML as `pynvml` (nvidia-ml-py) shows it, for machines without a GPU: its function names, its structures' fields, and
its own errors, raised where the driver raises them. Everything of pynvml that is not faked here is the real thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pynvml

GIB = 2**30


@dataclass
class FakeGpu:
    """One device; `broken` is the NVML error code that every question about it gets."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    total: int = 80 * GIB
    used: int = GIB
    gpu: int | None = 0
    """Utilization in percent; None: not supported, as with MIG."""
    broken: int | None = None


@dataclass
class _Memory:
    total: int
    free: int
    used: int


@dataclass
class _Utilization:
    gpu: int
    memory: int


@dataclass
class FakeNvml:
    """Put it in the place of the module."""

    gpus: list[FakeGpu] = field(default_factory=list)
    init_error: int | None = None
    """E.g. `pynvml.NVML_ERROR_LIBRARY_NOT_FOUND`, where there is no driver."""
    count_error: int | None = None
    initialized: int = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml"):
            raise AssertionError(f"{name} is not faked")
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.initialized += 1

    def nvmlDeviceGetCount(self) -> int:
        self._ask(self.count_error)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._ask(None)
        if not 0 <= index < len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if self.gpus[index].broken == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> _Memory:
        self._ask(handle.broken)
        return _Memory(handle.total, handle.total - handle.used, handle.used)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> _Utilization:
        self._ask(handle.broken if handle.gpu is not None else pynvml.NVML_ERROR_NOT_SUPPORTED)
        return _Utilization(handle.gpu or 0, 0)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        self._ask(handle.broken)
        return handle.name

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        self._ask(handle.broken)
        return handle.uuid

    def _ask(self, error: int | None) -> None:
        if not self.initialized:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if error is not None:
            raise pynvml.NVMLError(error)
