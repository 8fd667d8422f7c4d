"""The native extension; everything else stands in setup.cfg."""

import os
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    """Compiles the sources of an extension at the same time; what remains is to link the objects."""

    def build_extension(self, ext):
        """Compiles and links one extension."""
        macros = [*ext.define_macros, *((name,) for name in ext.undef_macros)]

        def compiled(source):
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=ext.include_dirs,
                debug=self.debug,
                extra_postargs=ext.extra_compile_args,
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [made for found in pool.map(compiled, ext.sources) for made in found]
        ext.language, ext.sources, ext.extra_objects = "c++", [], [*ext.extra_objects, *objects]
        super().build_extension(ext)


setup(cmdclass={"build_ext": ParallelBuild}, cffi_modules=["runtime/python_build.py:ffi"])
