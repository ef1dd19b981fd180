"""Whether this machine has an NVIDIA driver and which GPUs, found out in a process of its own.

Data in: nothing. Data out: `Driver`. Invariants: libcuda is never loaded into the calling process (TensorRT's lean
runtime is known to crash where there is no driver, and a broken driver may too); every failure is a reason, in words.
Needs no CUDA package: libcuda is the driver's own library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

SECONDS = 30  # a cold GPU takes seconds to wake
PROBE = """
import ctypes, json
def ask():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"reason": f"there is no NVIDIA driver ({error})"}
    code = cuda.cuInit(0)
    if code:
        return {"reason": f"the NVIDIA driver can't be used: cuInit says {code}"}
    count = ctypes.c_int()
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return {"reason": f"the NVIDIA driver finds no GPU (code {code})"}
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    found = []
    for device in range(count.value):
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        cuda.cuDeviceGetName(name, 256, device)
        found.append([name.value.decode(errors="replace"), 10 * major.value + minor.value])
    return {"gpus": found}
print(json.dumps(ask()))
"""


@dataclass(frozen=True)
class Gpu:
    name: str
    sm: int  # compute capability times ten


@dataclass(frozen=True)
class Driver:
    """GPUs in the driver's order; none, and a reason, where there is nothing to run on."""

    gpus: tuple[Gpu, ...]
    reason: str | None


def probe_driver(script: str = PROBE) -> Driver:
    """Ask the driver; takes some 50 ms where there is none."""
    try:
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True,
                              timeout=SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return Driver((), f"the NVIDIA driver doesn't answer within {SECONDS} s")
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return Driver((), f"asking the NVIDIA driver ended with {ended}: {done.stderr.strip()[-200:] or 'no message'}")
    try:
        answer = json.loads(done.stdout)
        gpus = tuple(Gpu(str(name), int(sm)) for name, sm in answer.get("gpus", ()))
        reason = answer.get("reason")
    except (ValueError, TypeError, AttributeError):
        return Driver((), f"asking the NVIDIA driver gave {done.stdout[:100]!r}")
    return Driver(gpus, None if gpus else str(reason or "no GPU was named"))
