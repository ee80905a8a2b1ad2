"""Writing files whole or not at all: write beside, then rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` when the block ends well.

    When the block raises (a full disk, Ctrl-C, anything else), the temporary file is removed and an existing
    ``path`` stays as it was. ``OSError`` becomes :class:`OutputError`, naming the file.
    """
    target = Path(path)
    if not target.name:
        raise OutputError(f"{target}: is a folder; name a file")
    temporary = _beside(target)
    try:
        # within the block that cleans up: a signal may come as soon as there is something to clean up
        try:
            temporary.touch(mode=0o600, exist_ok=False)
        except OSError as error:
            raise _not_writable(target, error) from error
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: not written ({error.strerror or error}); nothing was left behind") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_new_folder(path: str | os.PathLike[str]) -> Path:
    """The place of a folder that is to be made; :class:`OutputError` for what must not be replaced."""
    try:
        target = Path(path).resolve()  # a link to a folder stands for that folder
        if target.exists():
            if not target.is_dir() or any(target.iterdir()):
                raise OutputError(
                    f"{target}: exists already and is not an empty folder; remove it or choose another name"
                )
            if target.samefile(Path.cwd()):  # it would be replaced under the feet of whoever works in it
                raise OutputError(f"{target}: is the current folder; name a folder that does not exist yet")
    except OutputError:
        raise
    except OSError as error:
        raise _not_writable(Path(path), error) from error
    return target


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like :func:`replacing_file` for a folder that must not exist yet, or be empty.

    Folders above it are made where they are missing, and taken away again when the block raises.
    """
    target = check_new_folder(path)
    try:
        made = [folder for folder in target.parents if not folder.exists()]
    except OSError as error:
        raise _not_writable(target, error) from error
    temporary = _beside(target)
    try:
        # within the block that cleans up: a signal may come as soon as there is something to clean up
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)
        except OSError as error:
            raise _not_writable(target, error) from error
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
                file.chmod(0o666 & ~_umask())  # some writers create files that only their owner can read
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: not written ({error.strerror or error}); nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def _beside(target: Path) -> Path:
    """A hidden name that nobody else has, in the same folder; the suffix is kept, since it may choose a format."""
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")


def _not_writable(target: Path, error: OSError) -> OutputError:
    return OutputError(f"{target}: cannot write here ({error.strerror or error}); choose a writable folder")


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, that hold nothing; after a success they hold what was written."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
