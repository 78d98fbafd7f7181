"""What devices can do at most, and what this one does."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu.session import Session

#: Dense bfloat16 matrix products with float32 accumulation, in TFLOP/s: the vendors' data sheets. The first pattern
#: that a device's name matches counts.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"B200", 2250.0),
    (r"H200 NVL|H100 NVL", 835.0),
    (r"H100 PCIe", 756.0),
    (r"GH200|H200|H100|H800", 989.0),
    (r"H20\b", 148.0),
    (r"A100\b|A800\b", 312.0),
    (r"A40\b", 149.7),
    (r"A30\b", 165.0),
    (r"A10\b|A10G", 125.0),
    (r"L40S", 362.0),
    (r"L40\b", 181.0),
    (r"L4\b", 121.0),
    (r"RTX 6000 Ada", 364.0),
    (r"RTX 5090", 209.5),
    (r"RTX 4090", 165.0),
    (r"RTX 3090", 71.0),
    (r"MI300X", 1307.0),
)


def peak_tflops(name: str) -> float | None:
    """The data sheet's dense bfloat16 rate of a device, in TFLOP/s; None for one that is not in :data:`PEAKS`."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def accelerator(device: torch.device) -> dict[str, Any]:
    """Name, memory, driver and rate of a device, for the provenance of the results."""
    told: dict[str, Any] = {"device": device_name(device), "peak_bf16_tflops": peak_tflops(device_name(device))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told |= {
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda or f"hip {torch.version.hip}",
            "cudnn": torch.backends.cudnn.version(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "driver": _driver(),
        }
    return told


def matmul_tflops(session: Session) -> float:
    """The bfloat16 rate of one large square product, in TFLOP/s: what a step could reach here at most."""
    size = 256 if session.reduced else 8192
    a, b = (torch.randn(size, size, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / session.seconds(lambda: a @ b, warmup=10) / 1e12


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip().replace("\n", "; ") or None
