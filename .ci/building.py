"""The build backend: setuptools, with a compiled library that any Python can load, and wheels that say so.

The library is called through ctypes and knows nothing of Python, so its name carries no Python's tag, and one wheel
serves every Python of a platform.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group


class BuildLibrary(build_ext):
    """Compiles the library."""

    def get_ext_filename(self, fullname):
        """A name that every Python finds: `_compiled.so`."""
        return str(Path(*fullname.split("."))) + EXTENSION_SUFFIXES[-1]

    def build_extension(self, ext):
        """Compile it, and remove what was compiled before from other sources or under another name."""
        if sys.platform != "linux":
            # On Linux it is not linked with an OpenMP runtime but uses the one that torch has loaded: see library.py
            ext.extra_link_args = ["-fopenmp"]
        library = Path(self.get_ext_fullpath(ext.name))
        for old in library.parent.glob(f"{library.stem}.*"):
            if old != library or newer_group([*ext.sources, *ext.depends], str(library)):
                old.unlink()
        super().build_extension(ext)

    def copy_extensions_to_source(self):
        """For an editable installation: as above."""
        for ext in self.extensions:
            for old in Path(*ext.name.split(".")[:-1]).glob(f"{ext.name.rpartition('.')[2]}.*"):
                old.unlink()
        super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """A wheel for every Python: of this platform, or of all, where there was no compiler and it holds no library."""

    def run(self):
        """Build, see whether there is a library, and pack."""
        self.run_command("build")
        library = self.get_finalized_command("build_ext")
        if not any(Path(library.get_ext_fullpath(ext.name)).exists() for ext in library.extensions):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self):
        """As in `py3-none-manylinux_2_17_x86_64`."""
        return "py3", "none", super().get_tag()[2]
