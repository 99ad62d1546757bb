"""One thread per process: the tests' models are tiny, and idle OpenMP threads that spin take the cores from the servers
and engines that other tests start. Set before anything imports torch; child processes inherit it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
