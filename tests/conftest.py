"""One thread per process: the tests' models are tiny, and idle OpenMP threads that spin take the cores from the servers
and engines that other tests start. Set before anything imports torch; child processes inherit it.

Without a GPU Triton interprets its kernels; that too must be said before anything imports it, and other libraries do.

Ctrl-C is given back its meaning: a shell that starts the tests in the background has them ignore it, and so would every
process they start, which is what the tests of Ctrl-C are about.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RIDGEPOINT_WEIGHT_CACHE"] = "off"  # no test leaves files in the user's cache
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
