"""Fails if an installed package has a known vulnerability that pyproject.toml does not explain.

The exceptions are the table [tool.fairseq-gpam.vulnerabilities]: the vulnerability's name and why it does not matter
here. Where pip-audit's service cannot be reached or knows none of the packages, says so and passes.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
UNREACHABLE = ("ConnectionError", "ServiceError", "Timeout", "timed out", "Max retries exceeded")


def main(pyproject: Path = PYPROJECT) -> int:
    exceptions = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["fairseq-gpam"]["vulnerabilities"]
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        if any(word in done.stderr for word in UNREACHABLE):
            print("pip-audit: its service cannot be reached from here, so no package was audited")
            return 0
        print(done.stderr, file=sys.stderr)
        return 1
    packages = json.loads(done.stdout)["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        print(f"pip-audit: its service knows none of the {len(packages)} packages from here, so none was audited")
        return 0
    found = [(package, one) for package in audited for one in package["vulns"]]
    names = {name for _, one in found for name in (one["id"], *one["aliases"])}
    unexplained = [(package, one) for package, one in found if not {one["id"], *one["aliases"]} & exceptions.keys()]
    for package, one in unexplained:
        fixed = ", ".join(one["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}", file=sys.stderr)
    for name in exceptions.keys() - names:
        print(f"{name}: an exception in pyproject.toml that is not needed any more", file=sys.stderr)
    print(f"pip-audit: {len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
