"""Spectrograms as pictures. Matplotlib is an extra, loaded only when something is drawn."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, UalmError
from ..files.writing import check_place, replacing_file
from ..process.extras import install_hint
from ..process.stopping import raise_interrupt
from ..sound.sound import Sound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The formats, by suffix, and the metadata left out of each, so that equal sounds give equal files.
_FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
#: Samples of a frame and between two, in seconds: partials 40 Hz apart are resolved, and onsets 8 ms apart.
_WINDOW_SECONDS, _HOP_SECONDS = 0.048, 0.008
#: Frames of a picture; a long sound is drawn with longer hops.
_MOST_FRAMES = 4000
#: Decibels from the loudest cell to the darkest colour.
_RANGE = 80.0
#: The level that silence is drawn at, in decibels of full scale.
_FLOOR = -180.0
#: Where the logarithmic axis begins, in Hz: lower frequencies are not audible. For a sound with nothing above that, it
#: begins at this fraction of the highest frequency.
_LOWEST, _LOWEST_OF_HIGHEST = 20.0, 0.01
#: Rows of the picture, about as many as it has pixels.
_ROWS = 480
#: Frequencies labelled on it, in every decade.
_NAMED = (1, 2, 5)
_INCHES, _DOTS_PER_INCH = (9.0, 4.0), 120
_TITLE_COLUMNS = 90


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuse what :func:`save_spectrogram` would refuse, before the sound is made."""
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise InputError(f"{target}: cannot draw {target.suffix or 'a name without extension'}; use .png, .svg or .pdf")
    check_place(target)
    _figure()


def spectrogram(sound: Sound) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (seconds) [T], frequencies (Hz) [F] and levels [F, T] of a sound, float64.

    Levels in decibels of the power of a sine of full scale, from Hann-windowed frames centred on the times; the power
    is the mean of the channels.
    """
    samples = sound.samples[:, None] if sound.samples.ndim == 1 else sound.samples
    rate, length = sound.sample_rate, len(samples)
    size = max(int(rate * _WINDOW_SECONDS) // 2 * 2, 2)
    hop = max(int(rate * _HOP_SECONDS), -(-length // _MOST_FRAMES), 1)
    padded = np.pad(samples.astype(np.float64), ((size // 2, size // 2 + hop), (0, 0)))
    window = np.hanning(size + 1)[:-1]  # periodic
    starts = np.arange(-(-length // hop) + 1) * hop
    power = np.zeros((size // 2 + 1, len(starts)))
    for channel in range(padded.shape[1]):
        frames = np.lib.stride_tricks.sliding_window_view(padded[:, channel], size)[starts]
        power += np.abs(np.fft.rfft(frames * window).T * (2 / window.sum())) ** 2 / padded.shape[1]
    levels = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR / 10)))
    return starts / rate, np.fft.rfftfreq(size, 1 / rate), levels


def save_spectrogram(sound: Sound, path: str | os.PathLike[str], title: str) -> None:
    """Draw the spectrogram of ``sound`` to a ``.png``, ``.svg`` or ``.pdf``, whole or not at all.

    Its frequency axis is logarithmic, from 20 Hz: all octaves are equally high.

    Raises :class:`InputError` for another suffix, :class:`OutputError` when the file cannot be written, and
    :class:`UalmError` if Matplotlib is not installed.
    """
    check_plot(path)
    target = Path(path)
    times, frequencies, levels = spectrogram(sound)
    figure = _figure()
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes = figure.add_subplot()
    top = max(float(levels.max()), _FLOOR + _RANGE)
    # a cell is centred on its time
    wide = (times[1] if len(times) > 1 else sound.duration) / 2
    lowest, highest = min(_LOWEST, frequencies[-1] * _LOWEST_OF_HIGHEST), frequencies[-1]
    image = axes.imshow(
        _over_octaves(levels, np.geomspace(lowest, highest, _ROWS + 1) / frequencies[1]),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=top - _RANGE,
        vmax=top,
        extent=(-wide, times[-1] + wide, 0, 1),
        transform=axes.get_xaxis_transform(),  # its rows are equally high, independent of the scale of the axis
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=_NAMED))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, sound.duration)
    axes.set_ylim(lowest, highest)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (Hz)")
    printable = "".join(letter if letter.isprintable() else " " for letter in title)
    axes.set_title("\n".join(textwrap.wrap(printable, _TITLE_COLUMNS)), parse_math=False)
    figure.colorbar(image, ax=axes, label="level (dB of full scale)")
    suffix = target.suffix.lower()
    import matplotlib

    # SVG names its parts at random unless it is given a salt
    with replacing_file(target) as temporary, matplotlib.rc_context({"svg.hashsalt": "ualm"}):
        figure.savefig(temporary, format=suffix[1:], metadata=_FORMATS[suffix])


def _over_octaves(levels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Levels [F, T], at the frequencies 0, 1, 2, ..., as the rows between ``edges`` [R + 1]: [R, T].

    A row takes the loudest of the cells that it overlaps, so that no partial is lost where many share a row.
    """
    first = np.floor(edges[:-1] + 0.5).astype(int)
    end = np.maximum(np.ceil(edges[1:] + 0.5).astype(int), first + 1)
    return np.stack([levels[start:stop].max(axis=0) for start, stop in zip(first, end, strict=True)])


def _figure() -> Figure:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, no state of the process
    except ImportError as error:
        raise_interrupt(error)
        raise UalmError(f"Matplotlib cannot be loaded ({error}); install it with: {install_hint('plot')}") from error
    return Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
