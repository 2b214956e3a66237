"""Marks that tests of several folders share."""

from __future__ import annotations

import shutil

import pytest

__all__ = ["needs_php"]

needs_php = [
    pytest.mark.php,
    pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine"),
]
