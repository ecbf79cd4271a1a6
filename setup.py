"""The one step of a build that setup.cfg has no words for: recipes and SLURM templates go into the wheel.

They stand at the top of the repository, where people look for them and sbatch is called. A wheel has no such place: it
holds copies, `distcxr/shipped/recipes` and `distcxr/shipped/slurm`, which `distcxr.recipe.shipped` finds. An editable
installation reads the folders of the clone and copies nothing.
"""

from pathlib import Path
from shutil import copytree, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "slurm")


class BuildWithFolders(build_py):
    """`build_py`, and the folders."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in SHIPPED:
            built = Path(self.build_lib, "distcxr", "shipped", folder)
            rmtree(built, ignore_errors=True)  # of an earlier build, with files that are gone since
            copytree(folder, built)


setup(cmdclass={"build_py": BuildWithFolders})
