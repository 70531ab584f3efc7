"""Runs pytest with an extension that was built elsewhere: `make sanitize` gives the one with sanitizers in it."""

from __future__ import annotations

import importlib.util
import sys

import pytest

if __name__ == "__main__":
    import gristmill  # noqa: F401 - the package that the extension belongs to

    built, *arguments = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("gristmill._native", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gristmill._native"] = module
    spec.loader.exec_module(module)
    sys.exit(pytest.main(arguments))
