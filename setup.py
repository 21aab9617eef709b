"""Builds the native kernels with the package; everything else is in pyproject.toml.

The library is plain C++ with OpenMP and knows neither torch nor Python: it is loaded with ctypes. It is optional: without a
compiler, or where it does not compile, the package installs without it.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

FOLDER = Path("src/detloss/kernels/native")
EXACT = "exact_"  # sources whose decisions depend on the last bit: every operation rounds by itself
FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-psabi",
]


class BuildKernels(build_ext):
    """Compiles the sources side by side, with as much of OpenMP as the compiler has."""

    def build_extension(self, ext: Extension) -> None:
        """Try with all of OpenMP first."""
        compile_all = self.compiler.compile

        def compile_one(source: str, options: dict[str, Any]) -> list[str]:
            if not Path(source).name.startswith(EXACT):
                return compile_all([source], **options)
            return compile_all([source], **{**options, "extra_postargs": [*options["extra_postargs"], "-ffp-contract=off"]})

        def side_by_side(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = list(pool.map(lambda source: compile_one(source, options), sources))
            return [name for made in objects for name in made]

        self.compiler.compile = side_by_side
        plain, linked = list(ext.extra_compile_args), list(ext.extra_link_args)
        # Threads and vectors; vectors alone (clang without the OpenMP library, as on macOS); neither.
        for flags, library in ((["-fopenmp"], ["-fopenmp"]), (["-fopenmp-simd"], []), (["-Wno-unknown-pragmas"], [])):
            ext.extra_compile_args, ext.extra_link_args = [*plain, *flags], [*linked, *library]
            try:
                return super().build_extension(ext)
            except (CompileError, LinkError) as error:
                failure = error
        raise failure

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function: this is no Python module."""
        return []


setup(
    ext_modules=[
        Extension(
            "detloss.kernels.native._kernels",
            sources=sorted(path.as_posix() for path in FOLDER.glob("*.cpp")),
            depends=sorted(path.as_posix() for path in FOLDER.glob("*.h")),
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
