"""The package as users install it: one list of dependencies, links that resolve, a clean import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

import interkd

ROOT = Path(__file__).resolve().parents[1]


def test_environment_and_pyproject_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project["dependencies"])
    assert f"python{project['requires-python']}" in conda


def test_every_dependency_has_a_range_and_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reasons = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    for requirement in project["dependencies"]:
        name, _, _ = requirement.partition(">=")
        assert ">=" in requirement, requirement
        assert "<" in requirement, requirement
        assert f"| {name} |" in reasons, f"{name} has no line in docs/decisions"


def test_links_point_at_the_root_folders() -> None:
    for name in ("pipeline", "kernels", "cli"):
        link = ROOT / "src" / "interkd" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_public_names() -> None:
    assert interkd.__all__ == ["InterkdError", "__version__"]


def test_help_starts_without_torch() -> None:
    code = (
        "import sys; from interkd.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'numba', 'lhotse'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cache-teacher" in done.stdout


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "*.zip")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (copy / "dist").glob("interkd-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("pipeline", "kernels", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"interkd/{path.relative_to(ROOT)}" in names
    assert "interkd/py.typed" in names
