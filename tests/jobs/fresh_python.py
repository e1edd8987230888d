from __future__ import annotations

import subprocess
import sys


def run_fresh(code: str, *arguments: object) -> str:
    """Run code in a Python of its own, where nothing is imported or allocated yet; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.strip()
