"""The native extension; everything else stands in setup.cfg."""

from setuptools import setup

setup(cffi_modules=["runtime/python_build.py:ffi"])
