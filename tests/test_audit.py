"""CI's search for known vulnerabilities, with a stand-in for pip-audit, and with pip-audit and one for its service."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from quick import first

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


class Service(BaseHTTPRequestHandler):
    """OSV's answers: Jinja2, which the package itself depends on, has a vulnerability, and nothing else has one."""

    def do_POST(self):
        package = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]
        found = {"id": "PYSEC-1", "aliases": ["CVE-1"], "affected": [{"package": package, "ranges": ranges}]}
        answer = json.dumps({"vulns": [found]} if package["name"] == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        """Keeps the tests' output free of the server's log."""


@pytest.fixture
def service():
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("reached", "exceptions", "status", "said"),
    first(
        1,
        [
            (True, "", 1, ": PYSEC-1, fixed in 99.0"),
            (True, 'CVE-1 = "not called"', 0, "packages audited, 1 known vulnerabilities"),
            (False, "", 0, "pip-audit: its service cannot be reached from here, so no package was audited\n"),
        ],
    ),
)
def test_pip_audit_itself(tmp_path, service, reached, exceptions, status, said):
    """A module named pip_audit gives the real pip-audit the service's address; it removes itself first."""
    if not reached:
        service.shutdown()
        service.server_close()
    address = f"http://127.0.0.1:{service.server_port}/v1/query"
    (tmp_path / "pip_audit.py").write_text(
        f"import sys\nsys.path.remove({str(tmp_path)!r})\nsys.modules.pop('pip_audit', None)\n"
        f"from pip_audit._cli import audit\nsys.argv += ['-s', 'osv', '--osv-url', {address!r}]\naudit()\n"
    )
    (tmp_path / "pyproject.toml").write_text(f"[tool.fairseq-gpam.vulnerabilities]\n{exceptions}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, AUDIT, tmp_path / "pyproject.toml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    if not reached:
        assert done.stdout + done.stderr == said
