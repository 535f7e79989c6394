"""The package as others get it: the wheel, installed into a fresh environment."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def call(*command: object) -> str:
    """Standard output of a command that must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("regrow-*.whl")
    return wheel


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "regrow/py.typed" in names
    for package in ("bench", "inspect"):
        assert any(name.startswith(f"regrow/{package}/templates/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"regrow"}


def test_the_wheel_installs_and_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are lent by the environment of the tests, for they are large."""
    environment = tmp_path / "venv"
    call(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    packages = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    where = call(python, "-P", "-c", "import regrow, importlib.resources as r; print(r.files(regrow) / 'py.typed')")
    assert Path(where.strip()) == packages / "regrow" / "py.typed"
    assert Path(where.strip()).exists()
    assert "compare" in call(environment / "bin" / "regrow", "--help")
