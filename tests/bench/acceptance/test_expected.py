"""The file of what the CPU draws: it is what this CPU draws, and another one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ualm.bench.acceptance.kernels import expected
from ualm.bench.acceptance.kernels.expected import PACKAGED, Expected, draw, load, prepare
from ualm.bench.acceptance.kernels.numbers import Numbers
from ualm.bench.acceptance.kernels.trials import FAULTY, SUITES
from ualm.runtime import InputError, _native


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the suite that is drawn in a second."""
    for name in set(SUITES) - {"small"}:
        monkeypatch.delitem(SUITES, name)


def test_the_file_that_comes_with_ualm_is_small() -> None:
    assert PACKAGED.stat().st_size < 1 << 20


@pytest.mark.full
def test_making_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    prepare(tmp_path / "again.npz", 0)
    assert (tmp_path / "again.npz").read_bytes() == PACKAGED.read_bytes()


def test_its_edge_cases_are_what_this_cpu_draws() -> None:
    with np.load(PACKAGED) as packed:
        for name, values in draw(SUITES["small"], 0).items():
            assert packed[f"small/{name}"].dtype == values.dtype
            np.testing.assert_array_equal(packed[f"small/{name}"], values)


def test_equal_seeds_give_equal_bytes_and_others_do_not(small: None, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(tmp_path / name, seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_it_holds_every_end_and_every_fault() -> None:
    rows = load(PACKAGED, "small", 0)
    found = [row for at in range(len(SUITES["small"].trials)) for row in rows.rows(at)]
    assert {row.fault for row in found} == {0, 1, 2, 3}  # none, NaN, +inf, nothing but -inf
    assert {row.flags & (_native.STOP | _native.LIMIT) for row in found} >= {0, _native.STOP, _native.LIMIT}
    assert {bool(row.latent) for row in found if row.flags & _native.LATENT} == {True}
    assert not [row for row in found if row.latent and not row.flags & _native.LATENT]
    assert len(found) > 4000
    for at, trial in enumerate(SUITES["small"].trials):  # each kind of fault is met, in every kind of segment
        last = list(rows.rows(at))[-1]
        faults = {"NaN": 1, "+inf": 2, "all -inf": 3}
        assert trial.logits not in faults or (last.fault, last.drawn) == (faults[trial.logits], FAULTY), trial


@pytest.mark.parametrize("suite", SUITES)
def test_every_trial_has_rows(suite: str) -> None:
    rows = load(PACKAGED, suite, 0)
    for at, trial in enumerate(SUITES[suite].trials):
        assert len(list(rows.rows(at))) >= trial.sequences and rows.inputs(at)


def test_another_file_is_refused(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"none: no such file; make it again: python -m ualm\.bench\.acceptance prep"):
        load(tmp_path / "none", "small", 0)
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(InputError, match="text: not what the CPU drew"):
        load(tmp_path / "text", "small", 0)
    with pytest.raises(InputError, match=r"was made for seed 0, not 3; .* --seed 3"):
        load(PACKAGED, "small", 3)
    np.savez(tmp_path / "part.npz", seed=np.array([0]))
    with pytest.raises(InputError, match=r"not what the CPU drew .*it holds no small/words"):
        load(tmp_path / "part.npz", "small", 0)
    with np.load(PACKAGED) as packed:
        arrays = dict(packed)
    for name, values in (("begins", arrays["small/begins"][1:]), ("latents", arrays["small/latents"][1:])):
        np.savez(tmp_path / "other.npz", **(arrays | {f"small/{name}": values}))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="was made for other trials"):
            load(tmp_path / "other.npz", "small", 0)


def test_a_row_knows_what_its_word_says() -> None:
    arrays = {
        "words": np.array([5 | _native.LATENT << 32, 7 | 2 << 40 | 3 << 48, 9 | _native.LIMIT << 32], np.uint64),
        "ids": np.zeros((3, 8), np.int32),
        "embeddings": np.array([1, 0, 2], np.uint32),
        "latents": np.array([4, 0, 0], np.uint32),
        "inputs": np.array([6], np.uint32),
        "begins": np.array([0, 3]),
    }
    one, two, three = Expected(arrays).rows(0)
    assert (one.drawn, one.flags, one.fault, one.ended, one.latent) == (5, _native.LATENT, 0, False, 4)
    assert (two.drawn, two.fault, two.stream, two.ended) == (7, 2, 3, True)
    assert three.ended


def test_numbers_have_the_same_bits_everywhere() -> None:
    """Computed by hand from PCG64's words for this seed."""
    words = [int(each) for each in np.random.PCG64(5).random_raw(4)]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    first, second = (np.float32(sum(halves[at::2]) - 2**33) * np.float32(3**0.5 / 2**32) for at in (0, 1))
    np.testing.assert_array_equal(Numbers(5).normal((2,)), np.float32([first, second]))
    np.testing.assert_array_equal(Numbers(5).uniform((2,)), [(word >> 11) / 2**53 for word in words[:2]])
    np.testing.assert_array_equal(Numbers(5).below(7, (2,)), [word % 7 for word in words[:2]])
    (bits,) = Numbers(5).bfloat16((1,))
    assert bits == (words[0] & 0xFFFF) & 0x81FF | 0x3E00


def test_numbers_are_about_what_they_are_called() -> None:
    normal = Numbers(1).normal((100_000,))
    assert normal.dtype == np.float32 and abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.01
    table = (Numbers(1).bfloat16((10_000,)).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(table).min() >= 0.125 and np.abs(table).max() < 2 and abs((table > 0).mean() - 0.5) < 0.03


def test_a_fault_that_is_not_known_is_no_row() -> None:
    with pytest.raises(ValueError, match="something else"):
        expected._fault_of("something else", 3)
