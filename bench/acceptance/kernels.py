"""Checks that the kernels compute the CPU's bits: random logits and edge cases, one sequence and many, all formats."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime import _native
from ...runtime.engines.device.cache import CacheShape, DeviceCache, narrow
from ...runtime.engines.device.device import NUMBER_BYTES, Device, Number, number_code
from ...runtime.engines.device.head import BLOCK, FusedHead
from ...runtime.engines.device.sampler import fill_null_prefix
from ...runtime.engines.tables import rotary_tables
from ...runtime.engines.tensorrt.rows import open_writer
from ...runtime.files.safetensors_reader import widen
from ...runtime.vocabulary import STREAMS
from .findings import Findings
from .sampler_trials import ROWS, Shape, Trial, draw_logits, edge_trials, true_trials

if TYPE_CHECKING:
    from .context import Ground


class Tables:
    """Random tables of a shape, on the host and on the device."""

    def __init__(self, device: Device, shape: Shape, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.device, self.shape = device, shape
        self.embedding = narrow(random.standard_normal((shape.vocabulary, shape.hidden), np.float32), "bfloat16")
        self.rvq = random.standard_normal((STREAMS, shape.codebook, shape.latent), np.float32)
        self.bias = random.standard_normal(shape.latent, np.float32)
        self._kept = [device.uploaded(table) for table in (self.embedding, self.rvq, self.bias)]
        places, cuda = [buffer.address for buffer in self._kept], device.cuda
        self.tables = cuda.Tables(
            embedding=places[0],
            embedding_number=number_code(cuda, "bfloat16"),
            rvq=places[1],
            rvq_bias=places[2],
            vocabulary=shape.vocabulary,
            hidden=shape.hidden,
            latent=shape.latent,
        )
        self.layout = cuda.Layout(
            codebook_size=shape.codebook, text_size=shape.text, audio_base=shape.audio_base, text_base=256
        )

    def cpu_sampler(self) -> Any:
        shape = self.shape
        return _native.FrameSampler(
            codebook_size=shape.codebook,
            text_size=shape.text,
            audio_base=shape.audio_base,
            text_base=256,
            embedding=self.embedding,
            rvq_table=self.rvq,
            rvq_bias=self.bias,
        )


def check_kernels(ground: Ground) -> Findings:
    """The stage."""
    found, device = Findings("kernels"), ground.device
    small, large = Shape(16, 41, 24, 12), Shape(1024, 1000 if ground.dry_run else 151936, 1536, 256)
    for name, shape, trials in (
        ("small", small, edge_trials(ground.dry_run)),
        ("true sizes", large, true_trials(ground.dry_run)),
    ):
        tables = Tables(device, shape, ground.seed)
        with found.checking(f"rows, embeddings, latents, stops: {name}") as details:
            rows = 0
            for index, trial in enumerate(trials):
                ground.progress(f"kernels: {name}, {index + 1}/{len(trials)}")
                rows += same_as_cpu(tables, trial, ground.seed + index)
            details.append(f"{len(trials)} trials, {rows} rows are equal bit for bit")
    for stored in ("float32", "float16", "bfloat16", "int8"):
        found.check(f"head, {stored}", partial(_head, device, stored, large, ground.seed))
    for number in NUMBER_BYTES:
        found.check(f"null prefix, {number}", partial(_null_prefix, device, number, ground.seed))
        found.check(f"rows appended, {number}", partial(append_rows, device, number, ground.seed))
    return found


def same_as_cpu(tables: Tables, trial: Trial, seed: int) -> int:
    """Draw rows on both sides from the same logits; AssertionError if a bit differs. Returns the rows compared."""
    device, shape = tables.device, tables.shape
    cuda, stream, count = device.cuda, device.stream.handle, trial.sequences
    columns, branches, text = shape.columns(trial.modality), trial.branches, trial.modality == "text"
    states = device.allocate(count * cuda.STATE_BYTES)
    logits = device.allocate(count * branches * columns * 4)
    embeddings = device.uploaded(np.zeros((count, 2, shape.hidden), np.float32))
    rows = device.pinned((count, ROWS, STREAMS), np.int32)
    latents = device.pinned((count, ROWS, shape.latent), np.float32)
    progress = device.pinned((count,), np.uint64)
    launch = cuda.SampleLaunch(
        states=states.address,
        logits=logits.address,
        logits_stride=columns,
        sequences=count,
        branches=branches,
        text=text,
        layout=tables.layout,
        tables=tables.tables,
        embeddings=embeddings.address,
        embedding_copies=2,
        rows=rows.address,
        row_capacity=ROWS,
        latents=0 if text else latents.address,
        latent_capacity=ROWS,
        progress=progress.address,
    )
    samplers = [tables.cpu_sampler() for _ in range(count)]
    for index, sampler in enumerate(samplers):
        options = {
            "temperature": trial.temperature,
            "top_k": trial.top_k,
            "top_p": trial.top_p,
            "guidance": trial.guidance,
            "max_steps": ROWS - index % 3,
            "seed": seed + index,
            "segment": index,
        }
        place, word = states.address + index * cuda.STATE_BYTES, progress.address + 8 * index
        kind = "text" if text else trial.mode
        cuda.begin_segment(state=place, progress=word, kind=kind, stream=stream, **options)
        sampler.begin_text(**options) if text else sampler.begin_audio(mode=trial.mode, **options)
    alive, compared = [True] * count, 0
    mine = np.empty((count, 2, shape.hidden), np.float32)
    for values in draw_logits(trial, (count, branches, columns), np.random.default_rng(seed)):
        device.upload(logits.address, values)
        launch(stream)
        device.download(mine, embeddings.address)
        device.synchronize()
        for index, sampler in enumerate(samplers):
            if alive[index]:
                alive[index] = _compare_row(
                    tables, sampler, values[index], rows.array[index], latents.array[index], mine[index],
                    int(progress.array[index]),
                )  # fmt: skip
                compared += 1
    return compared


def _compare_row(
    tables: Tables,
    sampler: Any,
    logits: np.ndarray,
    rows: np.ndarray,
    latents: np.ndarray,
    embeddings: np.ndarray,
    word: int,
) -> bool:
    """Compare one sequence's row with the CPU's; returns whether the segment goes on."""
    row, shape = sampler.row, tables.shape
    ids, embedding = np.empty(STREAMS, np.int32), np.empty(shape.hidden, np.float32)
    latent = np.empty(shape.latent, np.float32)
    drawn, flags, fault, stream = word & 0xFFFFFFFF, word >> 32 & 0xFF, word >> 40 & 0xFF, word >> 48 & 0xFF
    try:
        expected = sampler.step(np.ascontiguousarray(logits), ids, embedding, latent)
    except ValueError as error:
        expected = _native.FAULTS[fault] % (drawn, stream) if fault in _native.FAULTS else "nothing"
        assert expected == str(error), f"row {row}: the CPU says {error}, the device fault {fault}: {expected}"
        return False
    assert fault == 0, f"row {row}: the device found fault {fault} in stream {stream}, the CPU none"
    assert (drawn, flags) == (row + 1, expected), f"row {row}: row {drawn - 1}, flags {flags}, not {expected}"
    assert (rows[row] == ids).all(), f"row {row}: drawn {rows[row].tolist()}, the CPU {ids.tolist()}"
    for copy in embeddings:
        assert (copy.view(np.int32) == embedding.view(np.int32)).all(), f"row {row}: the next embedding differs"
    if expected & _native.LATENT:
        frame = latents[row - STREAMS + 1]
        assert (frame.view(np.int32) == latent.view(np.int32)).all(), f"row {row}: the latent differs"
    return not expected & (_native.STOP | _native.LIMIT)


def _head(device: Device, number: str, shape: Shape, seed: int) -> str:
    """The head's kernel against a product in float64; the order of the branches does not matter to a sum."""
    random, inputs, columns = np.random.default_rng(seed), shape.hidden, shape.columns("audio")
    exact = (random.standard_normal((inputs, columns), np.float32) / np.float32(inputs**0.5)).astype(np.float32)
    bias = random.standard_normal(columns, np.float32)
    hidden = random.standard_normal((2, inputs), np.float32)
    scales = None
    if number == "int8":
        blocks = exact.reshape(inputs // BLOCK, BLOCK, columns)
        scales = (np.abs(blocks).max(1) / 127).astype(np.float16)
        stored = np.round(blocks / scales[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8)
        wide = (stored * scales[:, None].astype(np.float64)).reshape(inputs, columns)
        stored = stored.reshape(inputs, columns)
    else:
        stored = narrow(exact, number)  # type: ignore[arg-type]
        wide = widen(stored).astype(np.float64)
    head = FusedHead(device, stored, scales, bias, number)
    place, logits = device.uploaded(hidden), device.allocate(2 * columns * 4)
    head.bound(place, logits, 2)()
    found = np.empty((2, columns), np.float32)
    device.download(found, logits.address)
    device.synchronize()
    expected = hidden.astype(np.float64) @ wide + bias
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert worst < 1e-5, f"largest difference {worst:.1e} of the largest logit; float32 sums stay below 1e-5"
    return f"largest difference {worst:.1e} of the largest logit"


def _null_prefix(device: Device, number: Number, seed: int) -> str:
    """Rotated keys and constant values of the null branch, against numpy's float32 and one rounding; nothing else may
    change."""
    random, shape = np.random.default_rng(seed), CacheShape(3, 2, 64, 96, number)
    keys, values = random.standard_normal((2, shape.layers, shape.kv_heads, shape.head_dim), np.float32)
    cos, sin = rotary_tables((1e4 ** -np.linspace(0, 1, 32)).astype(np.float32), shape.capacity)
    cache = DeviceCache(device, shape)
    cache.clear(0)
    places = [device.uploaded(table) for table in (keys, values, cos, sin)]
    first, last = 5, 91
    fill_null_prefix(device, cache, (places[0], places[1]), (places[2], places[3]), first, last)
    low, high = keys[..., None, :32], keys[..., None, 32:]
    turn = cos[first:last], sin[first:last]
    rotated = np.concatenate([low * turn[0] - high * turn[1], high * turn[0] + low * turn[1]], -1)
    constant = np.broadcast_to(values[..., None, :], rotated.shape)
    for layer, half in itertools.product(range(shape.layers), (0, 1)):
        filled = narrow((rotated if half == 0 else constant)[layer], number)
        expected = np.zeros((2, shape.kv_heads, shape.capacity, shape.head_dim), filled.dtype)
        expected[1, :, first:last] = filled
        held = np.empty_like(expected)
        device.download(held, cache.layers[layer][half].address)
        device.synchronize()
        bits = {2: np.uint16, 4: np.uint32}[expected.dtype.itemsize]
        same = held.view(bits) == expected.view(bits)
        assert same.all(), f"layer {layer}, {'keys' if half == 0 else 'values'}: {int((~same).sum())} numbers differ"
    return f"{last - first} positions of {shape.layers} layers are equal bit for bit"


class _Places:
    """The addresses that an engine would be given for its separate outputs."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def output(self, name: str, address: int) -> None:
        self.of[name] = address


def append_rows(device: Device, number: Number, seed: int) -> str:
    """One captured launch, as in a decode step, puts both branches' rows at the position that holds when it runs, and
    changes nothing else; AssertionError if a bit differs."""
    random, shape = np.random.default_rng(seed), CacheShape(3, 2, 64, 40, number)
    cache, position, places = DeviceCache(device, shape), device.allocate(8), _Places()
    writer = open_writer("appended", device, shape, branches=2, rows=1)
    writer.bind(places, cache)  # type: ignore[arg-type]

    def drawn(rows: int) -> np.ndarray:
        return narrow(random.standard_normal((2, shape.kv_heads, rows, shape.head_dim), np.float32), number)

    held = {}
    for layer, (half, name) in itertools.product(range(shape.layers), enumerate(("key", "value"))):
        place, values = cache.layers[layer][half].address, drawn(shape.capacity)
        device.upload(place, values)
        held[f"new_{name}.{layer}"] = place, values
    device.synchronize()
    step = device.capture(lambda: writer.write(cache, 1, position))
    for at in random.permutation(shape.capacity).tolist():
        device.upload(position.address, np.array([at], np.int64))
        for name, place in places.of.items():
            new = drawn(1)
            device.upload(place, new)
            held[name][1][:, :, at] = new[:, :, 0]
        step.launch()
        for name, (place, expected) in held.items():
            got = np.empty_like(expected)
            device.download(got, place)
            device.synchronize()
            assert got.tobytes() == expected.tobytes(), f"{name}, appended at position {at}: the cache differs"
    return f"{shape.capacity} launches of one graph: {shape.layers} layers are equal bit for bit"
