"""Builds `trailboss-guard`, an executable, among the extension modules of a wheel or an editable installation.

pyproject.toml lists it as an extension, so that all that setuptools knows about those holds for it: which files a source
distribution needs, where the result goes (beside the Python modules), what an editable installation does, and that an
optional one that cannot be built is a warning (the plain Python guard serves then). What differs is here: its file name,
and that an executable is linked. Static where the libc can be had so: it is half as large in memory then, starts faster
and runs on any Linux; else with the libc of the machine.
"""

from __future__ import annotations

import os
import sys

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

#: Last part of the extension's name -> name of the executable.
PROGRAMS = {"_guard": "trailboss-guard"}
#: Ways to link, the better one first.
LINKS = (["-static-pie"], ["-pie"])


class BuildPrograms(build_ext):
    """`build_ext` that makes executables of the extensions in PROGRAMS."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the result goes, below the folder of all packages, or of its own: setuptools asks for both."""
        *folders, name = fullname.split(".")
        if name in PROGRAMS:
            return os.path.join(*folders, PROGRAMS[name])
        return super().get_ext_filename(fullname)

    def get_source_files(self) -> list[str]:
        """What a source distribution has to hold."""
        return [*super().get_source_files(), "native/build_programs.py"]

    def build_extension(self, ext: Extension) -> None:
        """Build one of them. Raises CompileError or LinkError where that is not possible."""
        if ext.name.rpartition(".")[2] not in PROGRAMS:
            super().build_extension(ext)
            return
        if not sys.platform.startswith("linux"):
            raise CompileError(f"{ext.name} is for Linux only")
        compiler = self.compiler
        objects = compiler.compile(
            sorted(ext.sources),
            output_dir=self.build_temp,
            include_dirs=ext.include_dirs,
            debug=self.debug,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        target = self.get_ext_fullpath(ext.name)
        for way in LINKS:
            try:
                compiler.link_executable(
                    objects,
                    os.path.basename(target),
                    output_dir=os.path.dirname(target),
                    debug=self.debug,
                    extra_postargs=[*ext.extra_link_args, *way],
                )
                break
            except LinkError:
                if way == LINKS[-1]:
                    raise
        os.chmod(target, 0o755)
