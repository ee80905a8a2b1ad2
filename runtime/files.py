"""Writing files whole or not at all: write beside, then rename."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError
from .stopping import unbroken

#: Bytes of a name on the file systems that are in use.
_LONGEST_NAME = 255


def check_place(target: Path) -> None:
    """Refuse a name that :func:`replacing_file` would refuse, before the work is done."""
    try:
        if not target.parent.is_dir():
            raise OutputError(f"{target}: the folder {target.parent} does not exist; create it first")
        if stat.S_ISDIR(target.stat().st_mode):
            raise OutputError(f"{target}: is a folder; name a file")
    except FileNotFoundError:
        return
    except OutputError:
        raise
    except OSError as error:
        raise _not_writable(target, error) from error
    _refuse_device(target)


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` when the block ends well.

    When the block raises (a full disk, Ctrl-C, anything else), the temporary file is removed and an existing
    ``path`` stays as it was. ``OSError`` becomes :class:`OutputError`, naming the file.
    """
    target = Path(path)
    if not target.name:
        raise OutputError(f"{target}: is a folder; name a file")
    _refuse_device(target)
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
        _remove(temporary)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like :func:`replacing_file` for a folder that must not exist yet, or be empty.

    Folders above it are made where they are missing, and taken away again when the block raises.
    """
    target = Path(path)
    made: list[Path] = []
    try:
        target = target.resolve()  # a link to a folder stands for that folder
        if target.exists():
            if not target.is_dir() or any(target.iterdir()):
                raise OutputError(
                    f"{target}: exists already and is not an empty folder; remove it or choose another name"
                )
            if target.samefile(Path.cwd()):  # it would be replaced under the feet of whoever works in it
                raise OutputError(f"{target}: is the current folder; name a folder that does not exist yet")
        made = [folder for folder in target.parents if not folder.exists()]
    except OutputError:
        raise
    except RuntimeError as error:  # before Python 3.13
        raise OutputError(f"{target}: is a loop of links; choose another name") from error
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
        _remove(temporary, made)


def _refuse_device(target: Path) -> None:
    """A device such as ``/dev/full`` or a pipe is no file, but who is allowed to would replace it by one."""
    try:
        kind = target.stat().st_mode
    except OSError:  # nothing is there, or what else is wrong comes out when it is written
        return
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OutputError(f"{target}: is a device or a pipe; name a file")


def _beside(target: Path) -> Path:
    """A hidden name that nobody else has, in the same folder; the suffix is kept, since it may choose a format.

    It is no longer than a file system takes where the target's is not.
    """
    rest = f".{secrets.token_hex(4)}{target.suffix}"
    room = max(len(os.fsencode(target.name)), _LONGEST_NAME) - len(os.fsencode(rest)) - 1
    stem = os.fsencode(target.stem)[: max(room, 0)].decode(errors="ignore")
    return target.with_name(f".{stem}{rest}")


def _not_writable(target: Path, error: OSError) -> OutputError:
    return OutputError(f"{target}: cannot write here ({error.strerror or error}); choose a writable folder")


@unbroken
def _remove(temporary: Path, folders: Sequence[Path] = ()) -> None:
    """Remove what was not finished, and folders, innermost first, that hold nothing: nothing to do after a success."""
    with suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
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
