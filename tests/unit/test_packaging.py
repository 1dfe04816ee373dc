"""One top-level name: the folders at the root are imported, and installed, under ``runtime``."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(*args: str, cwd: Path) -> str:
    """Return what a fresh interpreter prints that sees only ``cwd`` and what is installed."""
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory) -> Path:
    """The Python files as a wheel holds them."""
    folder = tmp_path_factory.mktemp("laid_out")
    python(
        "setup.py",
        "-q",
        "egg_info",
        "-e",
        str(folder),
        "build_py",
        "--build-lib",
        str(folder),
        cwd=ROOT,
    )
    return folder


def test_the_only_top_level_package_is_runtime(laid_out):
    assert [path.name for path in laid_out.iterdir() if path.suffix != ".egg-info"] == ["runtime"]


def test_every_python_file_is_in_the_wheel(laid_out):
    for folder, inside in {
        "runtime": ".",
        "kernels": "kernels",
        "export": "export",
        "bench": "bench",
    }.items():
        for path in (ROOT / folder).rglob("*.py"):
            assert (laid_out / "runtime" / inside / path.relative_to(ROOT / folder)).exists(), path


def test_the_prompts_of_the_quality_comparison_are_in_the_wheel(laid_out):
    prompts = "bench/quality/prompts"
    found = {path.name for path in (laid_out / "runtime" / prompts).iterdir()}
    assert found == {path.name for path in (ROOT / prompts).iterdir()} and len(found) == 2


def test_the_page_of_the_server_is_in_the_wheel(laid_out):
    page = "runtime/serve/page"
    found = {path.name for path in (laid_out / page).iterdir()}
    assert found == {path.name for path in (ROOT / page).iterdir()} and "index.html" in found


def test_root_folders_own_no_top_level_package():
    for folder in ("kernels", "export", "bench"):
        assert not (ROOT / folder / "__init__.py").exists(), (
            f"{folder}/__init__.py would shadow another project"
        )


@pytest.mark.parametrize("where", ["checkout", "wheel"])
def test_kernels_are_found_under_runtime(where, laid_out):
    folder = ROOT if where == "checkout" else laid_out
    code = "import runtime.kernels.native as n; print(n.__file__)"
    inside = "kernels/native.py" if where == "checkout" else "runtime/kernels/native.py"
    assert Path(python("-c", code, cwd=folder).strip()) == folder / inside


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, runtime; print(*sorted({'torch', 'numpy', 'runtime.engine'} & set(sys.modules)))"
    assert python("-c", code, cwd=ROOT).strip() == ""


def test_an_unknown_public_name_is_answered_with_the_known_ones():
    import runtime

    with pytest.raises(AttributeError, match="public names: AsyncEngine, .*, __version__$"):
        runtime.Enigne  # noqa: B018
    assert set(runtime.__all__) <= set(dir(runtime))


def test_building_needs_no_torch():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requires = re.search(r"^requires = \[(.*)\]", text, re.MULTILINE).group(1)
    assert "pybind11" in requires and "torch" not in requires


def test_pins_are_exact():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+( ; .*)?$", pin) for pin in pins)
    assert pins[0].startswith("torch=="), "the Makefile installs the first pin before all others"


@pytest.mark.slow
def test_a_wheel_built_from_the_source_archive_imports_anywhere(tmp_path):
    python(
        "setup.py",
        "-q",
        "egg_info",
        "-e",
        str(tmp_path),
        "sdist",
        "-d",
        str(tmp_path / "dist"),
        cwd=ROOT,
    )
    (archive,) = (tmp_path / "dist").iterdir()
    pip = [
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path / "wheels"),
    ]
    python(*pip, str(archive), cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as inside:
        names = inside.namelist()
        inside.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"runtime", "stream_t1_runtime"}
    code = "from runtime.kernels import philox; print(philox.implementation('native'))"
    assert python("-c", code, cwd=tmp_path / "site").strip() == "native"
