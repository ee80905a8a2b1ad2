"""Where a sound goes while it is being made: an audio device, or a pipe of samples, raw or as a WAV."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import numpy as np

from ..conversation.events import SoundChunk
from ..errors import EngineError
from ..process.extras import install_hint
from ..process.stopping import raise_interrupt
from ..sound.sound import Sound
from ..sound.writing import write_all

#: Samples go to a device in portions of this many seconds, between which it may be stopped.
_PIECES = 10


class Output(Protocol):
    """Takes the chunks of one sound as they arrive."""

    def write(self, chunk: SoundChunk) -> None:
        """The next chunk; waits while the output has enough to do."""
        ...

    def finish(self) -> None:
        """The sound is complete: returns when the output is done with it."""
        ...

    def abort(self) -> None:
        """Stop immediately."""
        ...

    def report(self) -> dict[str, Any]:
        """What a user may want to know afterwards."""
        ...


class Player:
    """The default audio device, through sounddevice.

    Playback begins when ``SoundChunk.preroll`` seconds are held, or the sound is complete. The device clips at full
    scale. ``underruns``: how often it ran dry since.
    """

    def __init__(
        self, sample_rate: int, channels: int, asked: str = "--play", stopped: Callable[[], bool] | None = None
    ) -> None:
        """Open the device. :class:`EngineError` if there is none, or no sounddevice.

        ``asked``: the option that asked for it, for messages. ``stopped``: whether the rest is no longer wanted; called
        several times a second.
        """
        try:
            import sounddevice
        except ImportError as error:
            raise_interrupt(error)
            raise EngineError(f"{asked}: {error}; install it with: {install_hint('play')}") from error
        except OSError as error:  # the package is there, the system's library is not
            raise EngineError(f"{asked}: {error}; install PortAudio, on Debian: apt install libportaudio2") from error
        try:
            self._stream: Any = sounddevice.OutputStream(samplerate=sample_rate, channels=channels, dtype="float32")
        except (sounddevice.PortAudioError, ValueError) as error:
            raise EngineError(
                f"{asked}: the audio device does not open for {channels} channels at {sample_rate} Hz ({error}); "
                f"choose another default device, or leave out {asked}"
            ) from error
        self._device_error: type[Exception] = sounddevice.PortAudioError
        self._rate, self._channels = sample_rate, channels
        self._asked, self._stopped = asked, stopped
        self._held: list[np.ndarray] = []
        self._playing = False
        self.underruns = 0
        self.preroll = 0.0

    def write(self, chunk: SoundChunk) -> None:
        if self._playing:
            return self._put(chunk.samples)
        self._held.append(chunk.samples)
        self.preroll = chunk.preroll
        if sum(map(len, self._held)) >= chunk.preroll * self._rate:
            self._begin()

    def finish(self) -> None:
        if not self._playing:
            self._begin()
        self._guarded(self._stream.stop)  # waits until all is played
        self._guarded(self._stream.close)

    def abort(self) -> None:
        self._guarded(self._stream.abort)
        self._guarded(self._stream.close)

    def report(self) -> dict[str, Any]:
        return {"preroll_seconds": round(self.preroll, 3), "underruns": self.underruns}

    def _begin(self) -> None:
        self._guarded(self._stream.start)
        self._playing = True
        before = self.underruns
        for samples in self._held:
            self._put(samples)
        self.underruns = before  # a device that has just been started runs dry until its first samples arrive
        self._held = []

    def _put(self, samples: np.ndarray) -> None:
        frames = np.ascontiguousarray(samples.reshape(len(samples), self._channels))
        step = len(frames) if self._stopped is None else max(self._rate // _PIECES, 1)
        for start in range(0, len(frames), step or 1):
            if self._stopped is not None and self._stopped():
                return
            self.underruns += bool(self._guarded(self._stream.write, frames[start : start + step]))

    def _guarded(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._device_error as error:
            raise EngineError(f"{self._asked}: the audio device failed ({error})") from error


class Loudspeaker:
    """Plays the sounds of a conversation one after the other, each while it is made, through a :class:`Player` each.

    ``underruns``: how often the device ran dry, in all of them.
    """

    def __init__(self, sample_rate: int, channels: int, asked: str = "--play") -> None:
        """Opens the device for a moment, so that one that does not open is reported before anything is computed."""
        self._player: Player | None = None
        self._stopped = False
        self._options = (sample_rate, channels, asked, lambda: self._stopped)
        self.underruns = 0
        Player(*self._options).abort()

    def write(self, chunk: SoundChunk) -> None:
        """The next chunk of a sound, the first of one after :meth:`finish`."""
        if self._player is None:
            self._player = Player(*self._options)
        self._player.write(chunk)

    def finish(self) -> None:
        """The sound is complete: returns when it has been played."""
        if self._player is not None:
            self._player.finish()
            self.underruns += self._player.underruns
        self._player = None

    def stop(self) -> None:
        """Play no more until :meth:`abort`; may be called while another call is under way, as by a signal."""
        self._stopped = True

    def abort(self) -> None:
        """Stop playing immediately, and be ready for another sound."""
        player, self._player, self._stopped = self._player, None, False
        if player is not None:
            player.abort()

    def play(self, sound: Sound) -> bool:
        """Play a complete sound; returns whether it was played to its end."""
        try:
            self.write(SoundChunk(0, sound.samples, sound.sample_rate, 0, 0.0))
            whole = not self._stopped
            if whole:
                self.finish()
            return whole
        finally:
            self.abort()


class RawPcm:
    """Interleaved samples without a header in a binary file: 32-bit floats, or 16-bit integers, little-endian.

    Integers cannot exceed full scale, and what was written cannot be made quieter: such samples are clipped at full
    scale, and counted in ``cut``.
    """

    def __init__(self, file: BinaryIO, *, pcm16: bool) -> None:
        """``file``: unbuffered, so that nothing is left to be written when its reader is gone."""
        self._file, self._pcm16 = file, pcm16
        self.format = "s16le" if pcm16 else "f32le"
        self.cut = 0

    def write(self, chunk: SoundChunk) -> None:
        if self._pcm16:
            steps = np.rint(chunk.samples.astype(np.float64) * 32768)
            self.cut += int(np.count_nonzero((steps > 32767) | (steps < -32768)))
            data = np.clip(steps, -32768, 32767).astype("<i2").tobytes()
        else:
            data = chunk.samples.astype("<f4").tobytes()
        self._send(data)

    def finish(self) -> None:
        """Everything has been written already."""

    def abort(self) -> None:
        """What was written is already with the reader."""

    def report(self) -> dict[str, Any]:
        return {"format": self.format, "cut_samples": self.cut}

    def _send(self, data: bytes) -> None:
        write_all(self._file, data, "standard output", "the samples have no reader")


class StreamedWav(RawPcm):
    """A WAV whose length is not known yet: its sizes are 0xFFFFFFFF, which readers take as "to the end"."""

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, *, pcm16: bool) -> None:
        super().__init__(file, pcm16=pcm16)
        self.format = f"wav {self.format}"
        self._header = _wav_header(sample_rate, channels, pcm16)

    def write(self, chunk: SoundChunk) -> None:
        if self._header:  # not before there is a sound: a run that fails leaves the pipe empty
            self._send(self._header)
            self._header = b""
        super().write(chunk)


def _wav_header(sample_rate: int, channels: int, pcm16: bool) -> bytes:
    """Everything before the samples. The format asks for a longer description and a sample count for floats."""
    width, unknown = 2 if pcm16 else 4, b"\xff\xff\xff\xff"
    tag, frame = 1 if pcm16 else 3, channels * width
    about = struct.pack("<HHIIHH", tag, channels, sample_rate, sample_rate * frame, frame, 8 * width)
    if not pcm16:
        about += b"\0\0"
    chunks = b"fmt " + struct.pack("<I", len(about)) + about
    if not pcm16:
        chunks += b"fact" + struct.pack("<I", 4) + unknown
    return b"RIFF" + unknown + b"WAVE" + chunks + b"data" + unknown
