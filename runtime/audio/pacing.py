"""When to decode the next piece of a sound: early enough for the listener, rarely enough for the codec.

A codec call has a fixed cost and a cost per frame, so few large pieces are cheaper than many small ones; but a piece
that comes after the previous one was played out leaves a gap. A :class:`ChunkProfile` says what is wanted, a
:class:`Pace` knows how long rows and calls take here, and a :class:`Pacer` decides for one sound.

Why playback that begins with the first piece does not starve: let a frame last t seconds, a row take r and a codec call
of n frames c(n), where c(n) / n does not grow with n; and let the first piece have n frames with n r + c(n) <= n t.
While a piece of m >= n frames plays, m rows can be drawn and decoded, for m r + c(m) <= m t. At the end of a sound the
l frames that the codec looks ahead come together: if c(1) + c(l) <= n t, they are in time as well, in a call of their
own where one for all would be late. The pacer makes the first piece large enough, and calls the codec before what was
sent is played out. A stage after the codec counts as a part of its calls; the d seconds that it holds back shorten the
first piece: n t - d takes the place of n t. Where no n is large enough the engine is slower than real time: see
:meth:`Pacer.preroll`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError

#: Measured times are taken as this much longer.
MARGIN = 1.1
#: Weight of a new measurement.
_NEW = 0.2


@dataclass(frozen=True)
class ChunkProfile:
    """Frames of the pieces of a sound: at least ``first``, then ``growth`` times as many each time, up to ``most``.

    Attributes
    ----------
    first : int
        Frames of the first piece, at least 1.
    growth : float
        Factor from one piece to the next, at least 1.
    most : int
        Frames of the largest piece, at least ``first``.

    Raises
    ------
    InputError
        For a value that cannot be used.

    Notes
    -----
    The profiles by name:

    - ``"first_sound"``, sound as early as possible: ``ChunkProfile(1, 1.5, 25)``
    - ``"balanced"``, early sound in pieces of some length: ``ChunkProfile(5, 2.0, 50)``
    - ``"throughput"``, the fewest calls: ``ChunkProfile(50, 1.0, 50)``

    Examples
    --------
    >>> profile = ChunkProfile(first=2, growth=1.5, most=20)
    >>> stream = model.stream("a trumpet plays C5", profile=profile, max_seconds=0.1)
    >>> sum(len(chunk.samples) for chunk in stream)
    1600
    """

    first: int
    growth: float
    most: int

    def __post_init__(self) -> None:
        for name in ("first", "most"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InputError(f"ChunkProfile: {name} = {value!r} must be a whole number of frames, at least 1")
        number = isinstance(self.growth, (int, float)) and not isinstance(self.growth, bool)
        if not number or not 1 <= self.growth < math.inf:
            raise InputError(f"ChunkProfile: growth = {self.growth!r} must be a number of at least 1")
        if self.most < self.first:
            raise InputError(f"ChunkProfile: most = {self.most} is less than first = {self.first}")

    @classmethod
    def named(cls, profile: str | ChunkProfile) -> ChunkProfile:
        """Look a profile up by its name.

        Parameters
        ----------
        profile : str or ChunkProfile
            "first_sound", "balanced" or "throughput" (``pacing.PROFILES``), or a profile, which is returned as it is.

        Returns
        -------
        ChunkProfile
            The profile.

        Raises
        ------
        InputError
            For an unknown name.

        Examples
        --------
        >>> ChunkProfile.named("balanced")
        ChunkProfile(first=5, growth=2.0, most=50)
        """
        if isinstance(profile, ChunkProfile):
            return profile
        if profile not in PROFILES:
            raise InputError(f"profile = {profile!r}: choose {', '.join(PROFILES)}, or give a ChunkProfile")
        return PROFILES[profile]


#: By intent: sound as early as possible; early sound in pieces of some length; the fewest calls.
PROFILES = {
    "first_sound": ChunkProfile(first=1, growth=1.5, most=25),
    "balanced": ChunkProfile(first=5, growth=2.0, most=50),
    "throughput": ChunkProfile(first=50, growth=1.0, most=50),
}


class Pace:
    """How long rows and codec calls take here, as measured so far. One per model, shared by its sounds."""

    def __init__(self) -> None:
        self._row: tuple[float, float] | None = None
        self._calls: dict[int, float] = {}

    def row(self, seconds: float) -> None:
        """Record that a row took ``seconds``."""
        mean, spread = self._row or (seconds, 0.0)
        self._row = mean + _NEW * (seconds - mean), spread + _NEW * (abs(seconds - mean) - spread)

    def codec(self, frames: int, seconds: float) -> None:
        """Record that a call of ``frames`` took ``seconds``."""
        known = self._calls.get(frames, seconds)
        self._calls[frames] = known + _NEW * (seconds - known)

    @property
    def row_seconds(self) -> float:
        """How long a row may take: its mean, its spread, and a margin; 0 before the first."""
        mean, spread = self._row or (0.0, 0.0)
        return MARGIN * (mean + spread)

    def codec_seconds(self, frames: int) -> float:
        """How long a call may take; 0 before the first.

        A call of n frames costs no more than a larger one, and per frame no more than a smaller one: each measured size
        gives a bound, and the lowest is taken.
        """
        bounds = (seconds * max(1.0, frames / size) for size, seconds in list(self._calls.items()))
        return MARGIN * min(bounds, default=0.0)


class Pacer:
    """Decides for one sound when its next piece is decoded, and tracks the player that started with the first."""

    def __init__(
        self,
        profile: ChunkProfile,
        frame_seconds: float,
        lookahead: int,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
        delay: float = 0.0,
    ) -> None:
        """``lookahead``: frames that the codec holds back; ``delay``: seconds that a stage after it does.

        ``pace`` None: pieces follow the profile alone.
        """
        self._profile, self._frame_seconds, self._lookahead = profile, frame_seconds, lookahead
        self._delay = delay
        self._pace, self._clock = pace, clock
        self._target = float(profile.first)
        self._played_out: float | None = None

    def due(self, ready: int) -> bool:
        """Is it time to decode the ``ready`` frames that have become certain, or better to wait for another row?"""
        if self._pace is None or ready < 1:
            return ready >= self._target
        if self._played_out is None:
            return ready >= self._target and ready >= (self._steady() or 0)
        if ready >= self._target:
            return True
        left = self._played_out - self._clock()
        if self._pace.codec_seconds(ready) > left:
            # too late for this one: keep the gap short, but the piece must last until the next
            steady = self._steady()
            return steady is not None and ready >= steady
        return self._pace.row_seconds + self._pace.codec_seconds(ready + 1) > left

    def rows_to_wait(self, ready: int) -> int:
        """Rows, at least 1, to draw before :meth:`due` is worth asking again; ``ready`` < 0: that many are missing."""
        wanted = math.ceil(self._target)
        rows = wanted - ready
        if self._pace is not None and self._played_out is not None and self._pace.row_seconds:
            left = self._played_out - self._clock() - self._pace.codec_seconds(wanted)
            rows = min(rows, int(left / self._pace.row_seconds))
        return max(rows, 1)

    def due_at_end(self, ready: int) -> bool:
        """With all rows there: decode the ``ready`` frames by themselves, because one call for all would be late?"""
        if self._pace is None or self._played_out is None or ready < 1:
            return False
        return self._pace.codec_seconds(ready + self._lookahead) > self._played_out - self._clock()

    def sent(self, frames: int, seconds: float) -> None:
        """Record that a piece of ``frames`` went out, which plays for ``seconds``; the player waited if it had to."""
        now = self._clock()
        self._played_out = max(now, self._played_out or now) + seconds
        self._target = min(max(self._target, frames) * self._profile.growth, self._profile.most)

    def preroll(self, frames: int) -> float:
        """Seconds of sound to hold before playback begins, so that a sound of ``frames`` does not starve.

        0 where the engine is faster than real time. Otherwise, with q seconds a frame of which each lasts t, and
        pieces of m frames: the player may hold b seconds, gets m frames every m q seconds, and needs b - t for each
        frame; it is served to the end if b >= t (frames (1 - t/q) + m t/q). What a stage after the codec holds back
        is held in addition. Assumes that rows go on taking as long as measured.
        """
        if self._pace is None or self._steady() is not None:
            return 0.0
        most = self._profile.most
        ratio = self._frame_seconds / (self._pace.row_seconds + self._pace.codec_seconds(most) / most)
        needed = self._frame_seconds * (frames * (1 - ratio) + most * ratio)
        return min(max(needed, 0.0) + self._delay, frames * self._frame_seconds)

    def _steady(self) -> int | None:
        """The fewest frames whose rows and decoding take no longer than they play; None if no piece is that large."""
        assert self._pace is not None
        row, codec = self._pace.row_seconds, self._pace.codec_seconds
        end = codec(1) + codec(self._lookahead)
        for frames in range(1, self._profile.most + 1):
            if max(frames * row + codec(frames), end) <= frames * self._frame_seconds - self._delay:
                return frames
        return None
