"""The input settings of an encoder, as a bundle's manifest keeps them: how its features are computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from ..files.reading import MOST_SIZE, shown
from .entries import check_names

OMNI = "qwen2.5-omni"
AF_WHISPER = "af-whisper"
#: Fewer mel frames than this give no feature row.
MIN_MEL_FRAMES = 3
#: Beyond this even 16-bit samples are silent.
MOST_SILENCE_DB = 96


@dataclass(frozen=True)
class FeatureSpec:
    """How the features of an encoder are computed; kept in the bundle's manifest.

    ``n_fft``, ``hop_length`` and ``max_samples`` are counted in samples at ``sample_rate`` Hz.

    - ``qwen2.5-omni``: ``window_frames`` mel frames attend to each other and to no others.
    - ``af-whisper``: every sound is padded with zeros to ``max_samples``, which give ``fixed_frames`` mel frames.

    ``normalize``: the samples are first scaled to zero mean and unit variance.

    ``silence_db``: before that, silence at both ends is cut: whatever is that many decibels below the loudest moment.
    0: nothing is cut, as in the published models.
    """

    kind: str
    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    max_samples: int
    normalize: bool
    window_frames: int = 0
    fixed_frames: int = 0
    silence_db: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expected = {"kind": str, "normalize": bool}.get(field.name, int)
            if type(value) is not expected:
                raise ValueError(f"{field.name}: {shown(value)} is not of type {expected.__name__}")
            if isinstance(value, int) and abs(value) > MOST_SIZE:
                raise ValueError(f"{field.name}: {shown(value)}: at most {MOST_SIZE} is supported")
        if self.kind not in (OMNI, AF_WHISPER):
            raise ValueError(f"kind: {shown(self.kind)} is unknown; {OMNI!r} or {AF_WHISPER!r} is expected")
        used = "window_frames" if self.kind == OMNI else "fixed_frames"
        for name in ("sample_rate", "n_fft", "hop_length", "n_mels", "max_samples", used):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be positive")
        if self.window_frames * self.fixed_frames or min(self.window_frames, self.fixed_frames) < 0:
            raise ValueError(f"window_frames, fixed_frames: only {used} belongs to {self.kind!r}; the other is 0")
        if not 0 <= self.silence_db <= MOST_SILENCE_DB:
            raise ValueError(f"silence_db: {self.silence_db} is not a number of decibels from 0 to {MOST_SILENCE_DB}")
        if self.n_fft % 2:
            raise ValueError(f"n_fft: {self.n_fft} is odd; frames are centred on a sample, so it must be even")
        if self.window_frames % 2:
            raise ValueError(f"window_frames: {self.window_frames} is odd; the second convolution halves it")
        if self.fixed_frames and self.fixed_frames * self.hop_length != self.max_samples:
            raise ValueError(f"fixed_frames: {self.fixed_frames} x {self.hop_length} is not {self.max_samples} samples")
        if self.max_samples < self.min_samples:
            raise ValueError(f"max_samples: {self.max_samples} is less than the {self.min_samples} of one feature row")

    @property
    def min_samples(self) -> int:
        """Samples of the shortest sound that gives a feature row (and can be reflected at its ends)."""
        return max(MIN_MEL_FRAMES * self.hop_length, self.n_fft // 2 + 1)

    def to_json(self) -> dict[str, object]:
        """Plain values, for the manifest; ``silence_db`` only where it cuts, so that older versions read the others."""
        values = asdict(self)
        if not self.silence_db:
            del values["silence_db"]
        return values

    @classmethod
    def from_json(cls, values: object) -> FeatureSpec:
        """The inverse of :meth:`to_json`; ValueError names the field that is missing, unknown or wrong."""
        required = {field.name for field in fields(cls)} - {"silence_db"}
        entry = check_names("features", values, required, ("silence_db",))
        try:
            return cls(**entry)
        except ValueError as error:
            raise ValueError(f"features.{error}") from error


def feature_rows(mel_frames: int) -> int:
    """Feature rows that ``mel_frames`` give: a convolution of stride 2, then pairs; an odd one out is dropped."""
    return (mel_frames + 1) // 2 // 2
