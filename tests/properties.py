"""How many examples a property test draws: a number of its own, in the proportion of the profile.

The profiles are conftest's: the same examples at every run, or with `--hypothesis-profile explore`
many new ones. What those find becomes an `@example` of the test, which every run then tries.
"""

from __future__ import annotations

from hypothesis import settings

USUAL = 100  # examples of a test that asks for no other number


def examples(count: int) -> int:
    """A test's `max_examples`, `count` at every run: a plain number would hold for `explore`."""
    return max(1, count * settings().max_examples // USUAL)
