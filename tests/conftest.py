"""One thread per process: the tests' models are tiny, and idle OpenMP threads that spin take the cores from the servers
and engines that other tests start. Set before anything imports torch; child processes inherit it.

Ctrl-C is given back its meaning: a shell that starts the tests in the background has them ignore it, and so would every
process they start, which is what the tests of Ctrl-C are about.
"""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RIDGEPOINT_WEIGHT_CACHE"] = "off"  # no test leaves files in the user's cache
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
