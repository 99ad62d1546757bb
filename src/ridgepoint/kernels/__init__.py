"""Operators: the only place where numbers are crunched. One folder per op, always the same files.

`__init__.py` is the op's public function, `reference.py` its definition in the plainest torch (slow, float-exact in
intent), `cpu.py` the fast path on CPUs (and plain torch on any device), `triton.py` the GPU one. All take explicit tensors and
facts from `catalog.spec`; none knows layers, requests or models. Every fast path agrees with its reference by test.
"""
