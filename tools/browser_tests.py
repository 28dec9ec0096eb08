"""Runs the tests of the web page in headless Chromium.

    python tools/browser_tests.py           # all of them
    python tools/browser_tests.py --core    # one way through the page, in about a minute

Playwright drives the browser that the system has; axe-core, which looks for barriers, comes in a
package of its own. Both are in an environment beside ours. Where there is no Chromium, root on
Debian gets its package. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from versions import overlay

ROOT = Path(__file__).resolve().parent.parent
PLAYWRIGHT = "1.65.2"
AXE = "axe-playwright-python==0.1.8"
TESTS = "tests/geollava/app/test_browser.py"
CORE = "test_an_example_compared_and_downloaded"
PACKAGES = ["chromium", "fonts-dejavu-core"]


def need_chromium() -> None:
    """Installs it where that is possible; SystemExit where it is not."""
    if os.environ.get("CHROMIUM") or shutil.which("chromium"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SystemExit(
            "the browser tests need Chromium: install the package chromium (Debian: "
            "apt-get install chromium), or name a browser's file in CHROMIUM"
        )
    print("Installing Debian's chromium; this takes a minute or two.", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *command], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--core", action="store_true", help="one way through the page")
    options = parser.parse_args()
    need_chromium()
    python = overlay("playwright", PLAYWRIGHT, [AXE])
    chosen = ["-k", CORE] if options.core else []
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS, *chosen],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)},
        check=False,
    )
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
