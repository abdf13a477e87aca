"""CI's search for known vulnerabilities, with a stand-in for pip-audit, and with pip-audit and one for its service."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci/audit.py"
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
BROKEN = {"name": "broken", "version": "1.0", "vulns": [FOUND]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "exceptions", "status", "said"),
    [
        ([SAFE, UNKNOWN], "", 0, "1 of 2 packages audited, 0 known vulnerabilities"),
        ([SAFE, BROKEN], "", 1, "broken 1.0: PYSEC-1, fixed in 2.0"),
        ([SAFE, BROKEN], 'PYSEC-1 = "not called"', 0, "2 of 2 packages audited, 1 known vulnerabilities"),
        ([SAFE, BROKEN], 'CVE-1 = "not called"', 0, "2 of 2 packages audited, 1 known vulnerabilities"),
        ([SAFE], 'CVE-1 = "not called"', 0, "CVE-1: an exception in pyproject.toml that is not needed any more"),
        ([UNKNOWN], "", 0, "knows none of the 1 packages from here, so none was audited"),
        ("requests.exceptions.ConnectionError: no route", "", 0, "cannot be reached from here, so no package"),
        ("ValueError: something else", "", 1, "ValueError: something else"),
    ],
)
def test_what_is_found_and_not_explained_fails(tmp_path, packages, exceptions, status, said):
    output = json.dumps({"dependencies": packages}) if isinstance(packages, list) else ""
    error = "" if output else packages
    (tmp_path / "pip_audit.py").write_text(f"import sys\nsys.stdout.write({output!r})\nsys.exit({error!r} or 0)\n")
    (tmp_path / "pyproject.toml").write_text(f"[tool.fairseq-gpam.vulnerabilities]\n{exceptions}\n")
    command = [sys.executable, AUDIT, tmp_path / "pyproject.toml"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
