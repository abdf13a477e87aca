"""A dead link fails CI's build of the documentation, which runs here by its own line of `.ci/run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(("address", "fails"), [("other.md", False), ("nowhere.md", True), ("other.md#nowhere", True)])
def test_a_dead_link_fails(tmp_path, address, fails):
    (line,) = [line for line in (REPOSITORY / ".ci/run").read_text(encoding="utf-8").splitlines() if "mkdocs" in line]
    settings = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    links = settings[settings.index("validation:") :]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: made\n{links}", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# One\n\n[a link]({address})\n", encoding="utf-8")
    (tmp_path / "docs/other.md").write_text("# Other\n", encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
