"""When pieces of a sound are decoded: profiles, measurements, and that a player does not run dry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ualm.runtime import ChunkProfile, InputError
from ualm.runtime.audio.pacing import MARGIN, PROFILES, Pace, Pacer

FRAME = 0.02


@dataclass(frozen=True)
class Machine:
    """Seconds of a row, and of a codec call for n frames: ``call + n * frame``."""

    row: float
    call: float
    frame: float

    def codec(self, frames: int) -> float:
        return self.call + frames * self.frame

    def pace(self, *sizes: int) -> Pace:
        """The measurements of a model that drew rows and made calls of these sizes."""
        pace = Pace()
        for _ in range(50):
            pace.row(self.row)
        for size in sizes:
            pace.codec(size, self.codec(size))
        return pace


@dataclass
class Played:
    """A sound played from its first piece on: frames of each piece, and seconds that the player waited."""

    pieces: list[int]
    silence: float


def play(
    machine: Machine,
    profile: ChunkProfile,
    pace: Pace,
    frames: int,
    lookahead: int = 10,
    hold: float = 0.0,
    most_rows: int = 1,
    delay: float = 0.0,
) -> Played:
    """Rows, then calls, one after the other on one thread, as in a turn; the player begins with ``hold`` seconds.

    Up to ``most_rows`` rows are drawn at once, if the pacer says that nothing can be due earlier. A stage after the
    codec holds back ``delay`` seconds until the end.
    """
    now = 0.0
    pacer = Pacer(profile, FRAME, lookahead, pace, clock=lambda: now, delay=delay)
    sent, pieces, silence, begun, end, held = 0, [], 0.0, False, 0.0, 0.0

    def call(frames_out: int, last: bool) -> None:
        nonlocal now, sent, silence, begun, end, held
        now += machine.codec(frames_out)
        pace.codec(frames_out, machine.codec(frames_out))
        came = held + frames_out * FRAME
        held = 0.0 if last else min(came, delay)
        came -= held
        pacer.sent(frames_out, came)
        sent += frames_out
        pieces.append(frames_out)
        if begun:
            silence += max(0.0, now - end)
            end = max(now, end) + came
        elif sent * FRAME - held >= hold or last:
            begun, end = True, now + sent * FRAME - held

    known = 0
    while known < frames:
        rows = min(pacer.rows_to_wait(known - lookahead - sent), most_rows, frames - known)
        now += rows * machine.row
        known += rows
        ready = known - lookahead - sent
        if (pacer.due(ready) if known < frames else pacer.due_at_end(ready)) and ready > 0:
            call(ready, last=False)
    call(frames - sent, last=True)
    assert sent == frames
    return Played(pieces, silence)


@st.composite
def fast_machines(draw: st.DrawFn) -> tuple[Machine, ChunkProfile]:
    """A machine faster than real time with pieces of the profile's largest size, margins included."""
    profile = draw(st.sampled_from([PROFILES["first_sound"], PROFILES["balanced"], ChunkProfile(3, 1.3, 12)]))
    row = draw(st.floats(0.0005, 0.9)) * FRAME / MARGIN
    spare = FRAME / MARGIN - row
    frame = draw(st.floats(0.0, 0.9)) * spare
    most = profile.most
    # rows and calls of the largest piece, and the two calls at the end, take no longer than that piece plays
    call = min((spare - frame) * most, (most * FRAME / MARGIN - 11 * frame) / 2) * draw(st.floats(0.0, 0.95))
    return Machine(row, call, frame), profile


@settings(max_examples=300, deadline=None)
@given(fast_machines(), st.integers(1, 1000), st.integers(1, 40), st.just(0.0) | st.floats(0.0, 3 * FRAME))
def test_playback_from_the_first_piece_never_starves_where_the_engine_is_faster_than_real_time(
    case: tuple[Machine, ChunkProfile], frames: int, most_rows: int, delay: float
) -> None:
    machine, profile = case
    pace = machine.pace(*range(1, profile.most + 11))
    held_back = Pacer(profile, FRAME, 10, pace, delay=delay).preroll(frames)
    assume(delay == 0.0 or held_back == 0.0)  # a stage may hold back more than this machine can make up for
    assert held_back == 0.0
    played = play(machine, profile, pace, frames, most_rows=most_rows, delay=delay)
    assert played.silence == 0.0
    assert max(played.pieces[:-1], default=0) <= profile.most


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1.0, 5.0),
    st.floats(0.0, 0.02),
    st.floats(0.0, 0.01),
    st.integers(1, 400),
    st.just(0.0) | st.floats(0.0, 3 * FRAME),
)
def test_a_slower_engine_tells_the_preroll_that_is_enough(
    ratio: float, call: float, frame: float, frames: int, delay: float
) -> None:
    """Rows alone take as long as they play, or up to five times as long."""
    machine, profile = Machine(ratio * FRAME, call, frame), PROFILES["balanced"]
    pace = machine.pace(*range(1, profile.most + 11))
    hold = Pacer(profile, FRAME, 10, pace, delay=delay).preroll(frames)
    assert 0 < hold <= frames * FRAME
    assert play(machine, profile, pace, frames, hold=hold, delay=delay).silence < 1e-9


def test_the_preroll_is_not_idle() -> None:
    """Half of it would not have been enough: an engine at half of real time needs half of a long sound in advance."""
    machine, profile, frames = Machine(2 * FRAME, 0.01, 0.0), PROFILES["balanced"], 1000
    pace = machine.pace(*range(1, 61))
    hold = Pacer(profile, FRAME, 10, pace).preroll(frames)
    assert 0.5 * frames * FRAME < hold < 0.65 * frames * FRAME
    assert play(machine, profile, pace, frames, hold=hold / 2).silence > 1.0


def test_a_call_that_costs_more_than_a_frame_makes_the_first_piece_larger() -> None:
    profile = PROFILES["first_sound"]
    cheap, costly = Machine(0.005, 0.001, 0.001), Machine(0.005, 0.06, 0.001)
    assert play(cheap, profile, cheap.pace(*range(1, 40)), 300).pieces[0] == 1
    # rows and a call: n * 1.1 * 5 ms + 1.1 * (60 + n) ms <= n * 20 ms; the end: 1.1 * (61 + 70) ms <= n * 20 ms
    expected = max(math.ceil(66 / (20 - 5.5 - 1.1)), math.ceil(1.1 * 131 / 20))
    assert play(costly, profile, costly.pace(*range(1, 40)), 300).pieces[0] == expected


def test_after_a_hiccup_the_gap_is_short_and_pieces_carry_again() -> None:
    now = 0.0
    machine, profile = Machine(0.005, 0.01, 0.0), PROFILES["balanced"]
    pacer = Pacer(profile, FRAME, 10, machine.pace(*range(1, 60)), clock=lambda: now)
    assert pacer.due(5)
    pacer.sent(5, 5 * FRAME)
    now = 1.0  # the player has been waiting for 0.9 s
    assert pacer.due(5) and not pacer.due(0)
    pacer.sent(5, 5 * FRAME)
    now += 0.005
    assert not pacer.due(1)  # it has 95 ms again


def test_without_anything_measured_the_profile_decides() -> None:
    pacer = Pacer(PROFILES["balanced"], FRAME, 10)
    sizes = []
    for _ in range(5):
        ready = 0
        while not pacer.due(ready):
            ready += 1
        sizes.append(ready)
        pacer.sent(ready, ready * FRAME)
    assert sizes == [5, 10, 20, 40, 50]
    assert pacer.preroll(1000) == 0.0
    assert Pacer(PROFILES["balanced"], FRAME, 10, Pace()).due(5)


def test_a_call_never_measured_is_bounded_by_those_that_were() -> None:
    machine = Machine(0.01, 0.008, 0.0005)
    pace = machine.pace(5, 20)
    for frames in range(1, 100):
        assert pace.codec_seconds(frames) >= machine.codec(frames)
    assert pace.codec_seconds(20) == pytest.approx(MARGIN * machine.codec(20))
    assert pace.codec_seconds(5) == pytest.approx(MARGIN * machine.codec(5))


def test_a_single_slow_row_changes_little_and_a_slower_machine_is_noticed() -> None:
    pace = Machine(0.01, 0.0, 0.0).pace()
    pace.row(0.1)
    assert pace.row_seconds < 6 * MARGIN * 0.01
    for _ in range(30):
        pace.row(0.01)
    assert pace.row_seconds < 1.05 * MARGIN * 0.01
    for _ in range(30):
        pace.row(0.03)
    assert pace.row_seconds == pytest.approx(MARGIN * 0.03, rel=0.05)


@pytest.mark.parametrize(
    ("values", "piece"),
    [
        ((0, 2.0, 50), "first = 0"),
        ((5, 0.5, 50), "growth = 0.5"),
        ((5, math.inf, 50), "growth = inf"),
        ((5, True, 50), "growth = True"),
        ((5, 2.0, 4), "most = 4 is less than first = 5"),
        ((5.0, 2.0, 50), "first = 5.0"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(values: tuple[int, float, int], piece: str) -> None:
    with pytest.raises(InputError, match=piece):
        ChunkProfile(*values)
