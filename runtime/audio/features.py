"""From a sound to the inputs of the encoder graph: log-mel frames, windows and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bundle.feature_spec import AF_WHISPER, FeatureSpec, feature_rows
from ..errors import BundleError, InputError
from ..sound.sound import Sound, resampled_length, to_mono

#: Seconds of silence that are left before and after a sound whose silence is cut: an onset and a decay are part of it.
SILENCE_KEPT = (0.06, 0.3)
#: Added to the attention scores of frames that are only padding. float32's softmax makes it a weight of exactly 0, and
#: float16 can still hold it beside a score.
MASKED = -30000.0
#: Mel frames computed at once: about 40 MB of scratch however long the sound is.
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class EncoderInput:
    """``inputs``: one array for each input of the encoder graph. ``rows``: how many rows of its output count."""

    inputs: dict[str, np.ndarray]
    rows: int


def normalized(samples: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance: ``(x - mean) / sqrt(var + 1e-7)``; float32 ``[n]``. Sums are kept in float64."""
    mean, variance = samples.mean(dtype=np.float64), samples.var(dtype=np.float64)
    return (samples - np.float32(mean)) * np.float32(1 / np.sqrt(variance + 1e-7))


def without_silence(samples: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """``samples`` float32 [n] without long silence at both ends, see ``FeatureSpec.silence_db``."""
    first, stop = audible_range(samples, spec)
    return samples[first:stop] if stop - first < len(samples) else samples


def audible_range(samples: np.ndarray, spec: FeatureSpec) -> tuple[int, int]:
    """The first and the past-the-end audible sample of ``samples`` float32 [n].

    Counted in steps of two mel frames, a codec frame of the published models, and never less than the encoder can hear;
    a sound that is silent all over is heard whole.
    """
    if not spec.silence_db:
        return 0, len(samples)
    step = 2 * spec.hop_length
    whole = np.pad(samples, (0, -len(samples) % step)).reshape(-1, step)
    power = np.square(whole, dtype=np.float64).mean(1)
    (loud,) = np.nonzero(power > power.max(initial=0.0) * 10 ** (-spec.silence_db / 10))
    if not len(loud):
        return 0, len(samples)
    before, behind = (round(seconds * spec.sample_rate / step) for seconds in SILENCE_KEPT)
    first = max(int(loud[0]) - before, 0) * step
    last = min((int(loud[-1]) + 1 + behind) * step, len(samples))
    last = max(last, min(first + spec.min_samples, len(samples)))
    return max(min(first, last - spec.min_samples), 0), last


def log_mel(samples: np.ndarray, spec: FeatureSpec, filters: np.ndarray) -> np.ndarray:
    """Whisper's log-mel spectrogram, float32 ``[n_mels, n // hop_length]``.

    ``samples``: float32 ``[n]``; ``filters``: float32 ``[n_fft // 2 + 1, n_mels]``. Hann-windowed frames centred on
    every ``hop_length``-th sample, the ends reflected, the frame at the very end left out; power; log10, not lower than
    8 below the sound's highest value; shifted and scaled to about -1 .. 1 (Radford et al. 2022, section 2.2).
    """
    frames = len(samples) // spec.hop_length
    padded = np.pad(samples, spec.n_fft // 2, mode="reflect")
    sliding = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft)[:: spec.hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.n_fft) / spec.n_fft)
    transposed = np.ascontiguousarray(filters.T)
    mel = np.empty((spec.n_mels, frames), np.float32)
    for start in range(0, frames, _BLOCK):
        stop = min(start + _BLOCK, frames)
        # float64: a quiet band 80 dB under the loudest one would drown in the rounding of a float32 transform
        spectrum = np.fft.rfft(sliding[start:stop] * window)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        mel[:, start:stop] = np.log10(np.maximum(transposed @ power.T, np.float32(1e-10)))
    np.maximum(mel, mel.max() - np.float32(8), out=mel)
    mel += np.float32(4)
    mel *= np.float32(0.25)
    return mel


class LogMelFrontend:
    """Turns sounds into the inputs of one bundle's encoder.

    ``filters``: float32 ``[n_fft // 2 + 1, n_mels]``, the tensor ``encoder.mel_filters`` of the bundle.
    """

    def __init__(self, spec: FeatureSpec, filters: np.ndarray) -> None:
        expected = (spec.n_fft // 2 + 1, spec.n_mels)
        if filters.shape != expected or filters.dtype != np.float32:
            raise BundleError(
                f"encoder.mel_filters: {filters.dtype} {filters.shape}, expected float32 {expected}; "
                "export the bundle again"
            )
        self.spec = spec
        self._filters = filters

    def prepare(self, sound: Sound) -> EncoderInput:
        """The encoder's inputs for channel 0 of ``sound``, at any rate; raises as :meth:`check`."""
        spec = self.spec
        self.check(sound)
        samples = without_silence(to_mono(sound, spec.sample_rate), spec)
        length = len(samples)
        frames = length // spec.hop_length
        if spec.kind == AF_WHISPER:
            samples = np.pad(samples, (0, spec.max_samples - length))
        if spec.normalize:
            samples = normalized(samples)
        mel = log_mel(samples, spec, self._filters)
        inputs = {"mel": mel[None]} if spec.kind == AF_WHISPER else self._windows(mel)
        return EncoderInput(inputs, feature_rows(frames))

    def check(self, sound: Sound) -> int:
        """Samples of ``sound`` at the encoder's rate.

        Raises :class:`InputError` for a sound that is too short for one feature row, or longer than the encoder takes.
        """
        spec = self.spec
        length = resampled_length(len(sound.samples), sound.sample_rate, spec.sample_rate)
        if length < spec.min_samples:
            raise InputError(
                f"sound: {sound.duration * 1000:.1f} ms is too short to hear; "
                f"at least {spec.min_samples / spec.sample_rate * 1000:.1f} ms are needed"
            )
        if length > spec.max_samples:
            raise InputError(
                f"sound: {sound.duration:.3f} s ({length} samples at {spec.sample_rate} Hz) is longer than the "
                f"{spec.max_samples / spec.sample_rate:g} s ({spec.max_samples} samples) that the encoder takes; "
                "cut it, or ask about its parts"
            )
        return length

    def _windows(self, mel: np.ndarray) -> dict[str, np.ndarray]:
        """Cut ``[n_mels, frames]`` into whole windows; the masks say where the padding of the last one starts."""
        size = self.spec.window_frames
        frames = mel.shape[1]
        windows = -(-frames // size)
        padded = np.zeros((self.spec.n_mels, windows * size), np.float32)
        padded[:, :frames] = mel
        frame_mask = np.zeros((windows * size), np.float32)
        frame_mask[:frames] = 1
        # the second convolution, of stride 2, turns r frames of the last window into (r + 1) // 2 positions
        attention_bias = np.full((windows * size // 2), MASKED, np.float32)
        attention_bias[: (frames + 1) // 2] = 0
        return {
            "mel": np.ascontiguousarray(padded.reshape(self.spec.n_mels, windows, size).transpose(1, 0, 2)),
            "frame_mask": frame_mask.reshape(windows, 1, size),
            "attention_bias": attention_bias.reshape(windows, 1, 1, size // 2),
        }
