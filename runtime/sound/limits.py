"""How much of a sound is read: seconds, samples and bytes, checked before memory is allocated for them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError

#: Bytes held of a sound that cannot be read twice, such as a pipe: 300 s of 96 kHz stereo in 32 bits are 220 MiB.
STREAM_BYTES = 256 << 20
#: Bytes of samples (float32, all channels) that a sound may take when it is read: 300 s of 48 kHz in 8 channels.
#: They are held twice while they are put together, and that stays below a gigabyte.
DECODED_BYTES = 448 << 20
#: Rates in Hz that a file may claim. Anything outside is a damaged header.
LOWEST_RATE, HIGHEST_RATE = 100, 10_000_000


@dataclass(frozen=True)
class Limit:
    """``seconds``: the longest useful sound; None: any length. ``most_bytes``: of its samples, None:
    :data:`DECODED_BYTES`."""

    seconds: float | None = None
    most_bytes: int | None = None

    def check_form(self, rate: int, channels: int) -> None:
        """Refuse a rate or a number of channels that no sound has."""
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise InputError(f"a rate of {rate} Hz is outside {LOWEST_RATE} to {HIGHEST_RATE} Hz; fix its header")
        if channels < 1:
            raise InputError("0 channels hold no samples; fix its header")

    def check(self, frames: int, rate: int, channels: int) -> None:
        """Refuse so many frames (samples of one channel), read or claimed."""
        # a frame more than fits: the encoder counts after resampling, and says it exactly
        if self.seconds is not None and frames > self.seconds * rate + 1:
            raise InputError(
                f"holds {frames / rate:.3f} s or more, longer than the {self.seconds:g} s that are heard; cut it, or "
                "ask about its parts"
            )
        most = DECODED_BYTES if self.most_bytes is None else self.most_bytes
        if frames * channels * 4 > most:
            raise InputError(
                f"{channels} channels at {rate} Hz take more than {_in_mebibytes(most)}; give one channel, a lower "
                "rate, or a shorter sound"
            )


def _in_mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.3g} MiB"
