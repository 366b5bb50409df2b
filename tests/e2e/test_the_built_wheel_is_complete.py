"""The wheel, installed outside the repository, finds its settings, its schema, its migrations and its weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOOK = """
import json
from pathlib import Path
import config, pipeline, scp_node, sr_writer, training
packages = (config, pipeline, scp_node, sr_writer, training)
from scp_node.cli.main import main
from scp_node.settings import PACKAGED_FILE, load_settings
print(json.dumps({
    "packages": [str(Path(package.__file__).resolve()) for package in packages],
    "settings": str(PACKAGED_FILE),
    "ae_title": load_settings(None).node.ae_title,
}))
"""
WEIGHTS = """
from pipeline.detect.detector import load_detector
print(load_detector("bundled", device="cpu", precision="float32", threads=1).model.sha256)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content, and nothing else of ours."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (place / "dist").glob("nodule_node-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return place / "site"


def _python(installed, tmp_path, *words):
    """Run Python elsewhere, the wheel's folder before the editable install of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_packages_and_settings_come_from_the_wheel(installed, tmp_path):
    found = json.loads(_python(installed, tmp_path, "-c", LOOK))
    for place in (*found["packages"], found["settings"]):
        assert Path(place).is_relative_to(installed.resolve())
    assert found["ae_title"] == "NODULE_NODE"


def test_the_command_works_with_the_packaged_settings(installed, tmp_path):
    said = _python(installed, tmp_path, "-m", "scp_node.cli.main", "config", "check")
    assert "NODULE_NODE" in said


def test_the_database_is_made_from_the_wheels_migrations(installed, tmp_path):
    (tmp_path / "node.toml").write_text('[storage]\nfolder = "data"\n')
    _python(installed, tmp_path, "-m", "scp_node.cli.main", "db", "upgrade")
    assert (tmp_path / "data" / "node.sqlite").is_file()


def test_the_bundled_weights_load(installed, tmp_path):
    assert (installed / "pipeline" / "weights" / "nodule.safetensors").is_file()
    assert len(_python(installed, tmp_path, "-c", WEIGHTS).strip()) == 64


def test_what_is_not_the_product_is_not_in_the_wheel(installed):
    for name in ("tests", "demo", "bench", "docs"):
        assert not (installed / name).exists()
