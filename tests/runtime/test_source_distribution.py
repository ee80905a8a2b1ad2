"""The source distribution: small enough to carry to a machine without a network, and all that a wheel is made of."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Bytes that it may have.
MOST = 30 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("sdist")
    make = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", make, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def test_it_is_at_most_30_mib(source: Path) -> None:
    assert source.stat().st_size <= MOST


def test_it_holds_what_a_wheel_is_made_of_and_little_else(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = {
        name for name in tracked if re.match(r"(csrc|runtime|export|bench)/|CMakeLists|LICENSE|README|THIRD", name)
    }
    unneeded = {name for name in needed if re.match(r"bench/results/|export/tiny/(training/|__main__)", name)}
    missing = {name for name in needed - unneeded if (ROOT / name).exists()} - names
    assert not missing
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"tests", "docs", "examples", "build", ".ci", ".github"} and not names & unneeded
