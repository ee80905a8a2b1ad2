"""Spectrograms: levels, times and frequencies are correct, and files are written completely or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ualm.runtime import InputError, OutputError, Sound, UalmError
from ualm.runtime.cli.plot import _over_octaves, save_spectrogram, spectrogram

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def tone(frequency: float, seconds: float = 0.5, rate: int = 16000, level: float = 1.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("rate", "level"), [(16000, 1.0), (48000, 0.1)])
def test_a_sine_stands_at_its_frequency_with_its_level(rate, level):
    times, frequencies, levels = spectrogram(Sound(tone(1000, rate=rate, level=level), rate))
    assert levels.shape == (len(frequencies), len(times))
    middle = levels[:, len(times) // 2]
    assert frequencies[middle.argmax()] == pytest.approx(1000, abs=frequencies[1] / 2)
    assert middle.max() == pytest.approx(20 * np.log10(level), abs=0.1)
    assert middle[frequencies > 1200].max() < middle.max() - 60


def test_an_onset_stands_at_its_time():
    samples = np.concatenate([np.zeros(8000, np.float32), tone(500)])
    times, _, levels = spectrogram(Sound(samples, 16000))
    loud = levels.max(axis=0) > -10
    assert times[loud.argmax()] == pytest.approx(0.5, abs=0.03) and loud[times > 0.53].all()
    assert levels[:, times < 0.4].max() == -180, "silence is the floor"
    assert times[0] == 0 and times[-1] >= 1.0 - 0.008


def test_channels_share_their_power():
    stereo = np.stack([tone(1000), np.zeros_like(tone(1000))], axis=1)
    _, _, levels = spectrogram(Sound(stereo, 16000))
    assert levels.max() == pytest.approx(-10 * np.log10(2), abs=0.3)


def test_a_long_sound_has_no_more_frames_than_a_picture_shows():
    times, _, levels = spectrogram(Sound(np.zeros(16000 * 100, np.float32), 16000))
    assert len(times) <= 4001 and times[-1] == pytest.approx(100, abs=0.05) and levels.max() == -180


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_files_are_pictures_and_equal_for_equal_sounds(tmp_path, suffix):
    sound = Sound(tone(1000), 16000)
    for name in ("a", "b"):
        save_spectrogram(sound, tmp_path / f"{name}.{suffix}", "a \x07 bell: $\\frac$ {x} " + "ding " * 40)
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert first.startswith(MAGIC[suffix.lower()]) and first == second
    assert len(list(tmp_path.iterdir())) == 2


def test_axes_have_units_and_the_title_is_the_prompt(tmp_path):
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        save_spectrogram(Sound(tone(1000), 16000), tmp_path / "a.svg", "a bell rings")
    drawn = (tmp_path / "a.svg").read_text()
    for words in ("a bell rings", "time (s)", "frequency (Hz)", "level (dB of full scale)"):
        assert f">{words}</text>" in drawn


def test_every_octave_is_as_high_as_the_next(tmp_path):
    from matplotlib.image import imread

    rows = []
    for frequency in (110, 440, 1760, 7040):
        save_spectrogram(Sound(tone(frequency, seconds=1.0), 16000), tmp_path / "a.png", "")
        middle = imread(tmp_path / "a.png")[:, 450, :3].sum(axis=1)  # a column of pixels within the picture
        bright = np.flatnonzero(middle[10:420] > 0.9 * middle[10:420].max())  # the ticks are below
        rows.append(bright.mean())
    steps = -np.diff(rows)  # two octaves each
    assert steps.min() > 40 and steps.max() - steps.min() < 0.15 * steps.mean()


def test_no_cell_is_lost_where_many_share_a_row():
    levels = np.arange(12.0).reshape(6, 2)
    rows = _over_octaves(levels, np.array([0.6, 0.7, 1.2, 5.5]))
    assert rows.tolist() == [[2, 3], [2, 3], [10, 11]]


@pytest.mark.parametrize("samples", [np.zeros(1, np.float32), np.zeros(100, np.float32), np.ones((5, 2), np.float32)])
def test_the_shortest_and_the_most_silent_sounds_are_drawn(tmp_path, samples):
    save_spectrogram(Sound(samples, 16000), tmp_path / "a.png", "")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_another_format_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"use \.png, \.svg or \.pdf"):
        save_spectrogram(Sound(tone(1000), 16000), tmp_path / name, "a")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="does not exist"):
        save_spectrogram(Sound(tone(1000), 16000), tmp_path / "none" / "a.png", "a")
    (tmp_path / "a.png").write_text("before")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OutputError, match="No space left"):
        save_spectrogram(Sound(tone(1000), 16000), tmp_path / "a.png", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "before"


def test_without_matplotlib_the_install_line_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UalmError, match=r'pip install "\.\[plot\]"'):
        save_spectrogram(Sound(tone(1000), 16000), tmp_path / "a.png", "a")
    assert not list(tmp_path.iterdir())


def test_the_command_draws_what_it_made(ualm: Callable[..., tuple[int, str, str]], tiny_bundle: Path, tmp_path):
    options = ("-b", tiny_bundle, "--threads", 1, "--max-seconds", 0.05)
    status, _, err = ualm("generate", "rain", "-o", tmp_path / "a.wav", "--plot", tmp_path / "a.png", *options)
    assert (status, err) == (0, "") and (tmp_path / "a.png").read_bytes().startswith(MAGIC["png"])
    status, out, err = ualm("generate", "rain", "-o", tmp_path / "b.wav", "--plot", tmp_path / "b.bmp", *options)
    assert (status, out) == (1, "") and ".bmp" in err and not (tmp_path / "b.wav").exists()


def test_nothing_of_matplotlib_is_loaded_before_it_is_needed():
    import subprocess

    code = "import sys, ualm.runtime.cli.main; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
