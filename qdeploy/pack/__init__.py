"""Bits to bytes and back: one file per packed layout of `ir/tensor.py`, along the last axis, in numpy."""
