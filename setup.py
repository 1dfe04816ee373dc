"""Maps the folders of this repository onto the one package ``runtime`` and builds ``runtime._C``.

``kernels/``, ``export/`` and ``bench/`` sit at the root for readers but are imported, and installed,
as ``runtime.kernels``, ``runtime.export`` and ``runtime.bench``: other projects own those names.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FOLDERS = {  # package -> folder
    "runtime": "runtime",
    "runtime.kernels": "kernels",
    "runtime.export": "export",
    "runtime.bench": "bench",
}
PACKAGE_DATA = {
    "runtime": [
        "generators/sprites/*.safetensors",
        "generators/*/*.json",
        "rewards/**/*.safetensors",
        "rewards/**/*.json",
        "serve/page/*",
    ],
    "runtime.kernels": ["tuned/*.json"],
    "runtime.bench": ["report.css", "quality/prompts/*.txt"],
}


def packages() -> dict[str, str]:
    """Return package name -> folder for every folder that holds Python files."""
    found = {}
    for top, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.parent.relative_to(ROOT / folder).parts
            found[".".join((top, *inner))] = "/".join((folder, *inner))
    return found


def tool(name: str) -> str | None:
    """Find a build tool on PATH or beside the running Python, whose environment need not be active."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


class CMakeBuild(build_ext):
    """Runs CMake once and puts the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake = tool("cmake")
        if cmake is None:
            raise RuntimeError(
                "runtime._C: cmake not found; run `pip install cmake ninja pybind11` first"
            )
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"),
            f"-DSTREAMT1_OUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if ninja := tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        # A cache made with another generator or in another environment cannot be reused.
        (work / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(work / "CMakeFiles", ignore_errors=True)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(work), "--config", "Release"], check=True)


if __name__ == "__main__":
    layout = packages()
    setup(
        packages=list(layout),
        package_dir=layout,
        package_data=PACKAGE_DATA,
        include_package_data=False,
        ext_modules=[Extension("runtime._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
