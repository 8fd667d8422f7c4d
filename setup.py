"""The native extension, which is optional; everything else stands in setup.cfg."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError


class ParallelBuild(build_ext):
    """Compiles the sources of an extension at the same time; what remains is to link the objects.

    Where that fails, as without a compiler, everything but the native runtime is installed all the same: `run` and
    `--to native` then say what is missing. QDEPLOY_NATIVE=1 makes it an error.
    """

    def run(self):
        """Builds the extension, or says in a sentence why there is none."""
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            if os.environ.get("QDEPLOY_NATIVE"):
                raise
            print(f"qdeploy: the native runtime was not built and is left out: {str(error)[:300]}", file=sys.stderr)
            self.extensions = []

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


setup(
    cmdclass={"build_ext": ParallelBuild},
    cffi_modules=["runtime/python_build.py:ffi", "runtime/fit/python_build.py:ffi"],
)
