"""The fast tier, ``pytest --fast``: the files that test most in a minute, and the enforced time limit."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
#: Total processor time that the tier may take, collection and imports included, in seconds.
LIMIT = 60.0
FILES = (
    *("bench/harness/test_blocks.py", "bench/meters/test_environment.py", "bench/report/test_statistics.py"),
    *("docs/test_index.py", "docs/test_issue_forms.py", "docs/test_limits.py", "docs/test_notices.py"),
    *("export/formats/test_blocks.py",),
    *("csrc/cpu/test_against_model.py", "csrc/cpu/test_arguments.py", "csrc/cpu/test_random_numbers.py"),
    *("csrc/cpu/test_sums.py",),
    *(
        "runtime/conversation/test_prompt.py",
        "runtime/files/test_writing.py",
        "parity/test_parity.py",
        "runtime/files/test_reading.py",
    ),
    *("runtime/test_sampling.py", "runtime/sound/test_sound.py", "runtime/conversation/test_sound_stream.py"),
)
#: Files of which only tests with these parameters belong to the tier.
PARAMETERS = {
    # whole conversations against the slow reference: a sound with guidance, a heard sound, text that plays
    "parity/test_parity.py": ("caption_guidance_3", "omni_44k_stereo", "text_then_audio"),
}
_seconds: Counter[str] = Counter()


def holds(path: Path) -> bool:
    """Whether a file belongs to the tier, or a folder may contain one that does."""
    return path.is_dir() or path.suffix != ".py" or path.relative_to(TESTS).as_posix() in FILES


def deselect(items: list[pytest.Item], config: pytest.Config) -> None:
    """Deselect tests that :data:`PARAMETERS` excludes."""
    left = [item for item in items if not _has_parameter(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if _has_parameter(item)]


def _has_parameter(item: pytest.Item) -> bool:
    wanted = PARAMETERS.get(item.path.relative_to(TESTS).as_posix())
    return wanted is None or any(name in re.split(r"[\[\]-]", item.name) for name in wanted)


def count(report: pytest.TestReport) -> None:
    """Record the time of a file's tests, to name the slowest."""
    _seconds[report.nodeid.partition("::")[0]] += report.duration


def finish(session: pytest.Session) -> None:
    """A tier that takes too long fails, even if its tests pass."""
    if problem := over_limit(sum(os.times()[:4])):
        print(f"\n{problem}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def over_limit(seconds: float) -> str | None:
    """The message for so many seconds of this process and its children; None if they are within the limit."""
    if seconds <= LIMIT:
        return None
    slowest = ", ".join(f"{file} ({taken:.0f} s)" for file, taken in _seconds.most_common(3))
    return (
        f"the fast tier took {seconds:.0f} s of processor time, {LIMIT:.0f} at most; take files out of "
        f"tests/support/fast_tier.py. The slowest: {slowest}"
    )
