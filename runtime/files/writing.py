"""Writing files whole or not at all: write a temporary file beside the target, then rename it.

The temporary file is locked until it is renamed or removed. A process that was killed leaves it behind, but its lock
ends with the process: the next write of the same file or folder removes leftovers that are no longer locked.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from ..process.stopping import raise_interrupt, unbroken

try:
    import fcntl
except ImportError as error:  # Windows
    raise_interrupt(error)
    fcntl = None  # type: ignore[assignment]

#: Bytes of the longest name on the file systems in use.
_LONGEST_NAME = 255


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path, links resolved. ``Path.resolve`` raises a RuntimeError for a loop of links before Python 3.13."""
    return Path(os.path.realpath(path))


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
    ``path`` stays as it was. ``OSError`` becomes :class:`OutputError`, naming the file. The block writes into the file
    that is there, which is locked; it does not put another one in its place.
    """
    target = Path(path)
    if not target.name:
        raise OutputError(f"{target}: is a folder; name a file")
    _refuse_device(target)
    _remove_leftovers(target)
    temporary, lock = _beside(target), _Lock()
    try:
        # within the block that cleans up: a signal may come as soon as there is something to clean up
        try:
            temporary.touch(mode=0o600, exist_ok=False)
            while lock.take(temporary) is False:  # another process took it for a leftover just before
                temporary = _beside(target)
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
        lock.release()


def check_new_folder(path: str | os.PathLike[str]) -> Path:
    """The resolved path of a folder to make; :class:`OutputError` for what must not be replaced."""
    try:
        target = Path(path).resolve()  # a link to a folder stands for that folder
        if target.exists():
            if not target.is_dir() or any(target.iterdir()):
                raise OutputError(
                    f"{target}: exists already and is not an empty folder; remove it or choose another name"
                )
            if target.samefile(Path.cwd()):  # it would be replaced while processes work in it
                raise OutputError(f"{target}: is the current folder; name a folder that does not exist yet")
    except OutputError:
        raise
    except RuntimeError as error:  # before Python 3.13
        raise OutputError(f"{path}: is a loop of links; choose another name") from error
    except OSError as error:
        raise _not_writable(Path(path), error) from error
    return target


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like :func:`replacing_file` for a folder that must not exist yet, or be empty.

    Folders above it are made where they are missing, and removed again when the block raises.
    """
    target = check_new_folder(path)
    try:
        made = [folder for folder in target.parents if not folder.exists()]
    except OSError as error:
        raise _not_writable(target, error) from error
    temporary, lock = _beside(target), _Lock()
    try:
        # within the block that cleans up: a signal may come as soon as there is something to clean up
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            temporary.mkdir(mode=0o700)
            while lock.take(temporary) is False:
                temporary = _beside(target)
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
        lock.release()


def _remove_leftovers(target: Path) -> None:
    """Remove what processes that have ended left beside ``target``; what is locked, or not ours, stays."""
    name = re.compile(rf"{re.escape(_hidden_stem(target))}\.u[0-9a-f]{{7}}{re.escape(target.suffix)}")
    with suppress(OSError):  # a folder that is missing, or cannot be listed, has nothing to remove
        for entry in list(os.scandir(target.parent)):
            if name.fullmatch(entry.name) and not entry.is_symlink():
                _remove_leftover(Path(entry.path))


def _remove_leftover(path: Path) -> None:
    lock = _Lock()
    with suppress(OSError):
        try:
            if lock.take(path) is not True:
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            lock.release()


class _Lock:
    """A lock on a file or folder, which ends with the process at the latest."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, path: Path) -> bool | None:
        """True: the lock is ours now. False: another process holds it, or the file is gone. None: unknown, since this
        system, or this kind of disk, has no such locks."""
        if fcntl is None:
            return None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its previous holder may have removed it
            if os.path.samestat(os.fstat(self._descriptor), os.stat(path, follow_symlinks=False)):
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            self.release()
            return None
        self.release()
        return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _refuse_device(target: Path) -> None:
    """A device such as ``/dev/full`` or a pipe is not a file, but with enough rights the rename would replace it."""
    try:
        kind = target.stat().st_mode
    except OSError:  # nothing is there, or writing will report what else is wrong
        return
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OutputError(f"{target}: is a device or a pipe; name a file")


def _beside(target: Path) -> Path:
    """A hidden name in the same folder that is not in use; the suffix is kept, since it may choose a format."""
    return target.with_name(_hidden_stem(target) + f".u{secrets.token_hex(4)[1:]}{target.suffix}")


def _hidden_stem(target: Path) -> str:
    """What such names begin with: short enough that file systems accept them wherever they accept the target's."""
    room = max(len(os.fsencode(target.name)), _LONGEST_NAME) - len(f"..u1234567{target.suffix}".encode())
    return "." + os.fsencode(target.stem)[: max(room, 0)].decode(errors="ignore")


def _not_writable(target: Path, error: OSError) -> OutputError:
    return OutputError(f"{target}: cannot write here ({error.strerror or error}); choose a writable folder")


@unbroken
def _remove(temporary: Path, folders: Sequence[Path] = ()) -> None:
    """Remove what was not finished, and empty ``folders``, innermost first; after a success there is nothing to do."""
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
