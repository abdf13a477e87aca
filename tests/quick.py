"""Which cases of a test run by default, and how many random ones; `scripts/test.sh --all` runs the others too."""

import os

import pytest

EXAMPLES = int(os.environ.get("GPAM_PROPERTY_EXAMPLES", "50"))


def first(count, cases):
    """The cases for `parametrize`, all but the first `count` of them marked `slow`; a tuple is a case of several."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if number < count else pytest.mark.slow) for number, case in enumerate(cases)]
