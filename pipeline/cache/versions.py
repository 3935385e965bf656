"""The layouts that this release reads, by format version."""

from __future__ import annotations

from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.layout import Layout
from interkd.pipeline.cache.version1 import Version1Layout
from interkd.pipeline.cache.version2 import Version2Layout

_LAYOUTS: dict[int, Layout] = {1: Version1Layout(), 2: Version2Layout()}


def layout_of(fingerprint: Fingerprint) -> Layout:
    """The layout of a store with that fingerprint, whose version has been checked at open."""
    return _LAYOUTS[fingerprint.format_version]
