"""A run's folder belongs to one run at a time.

The lock is the system's (`flock`), so it goes with the process that holds it, however that ends. On network disks that
pass locks on (NFS 4, GPFS, Lustre with `-o flock`) it holds between machines. Where a disk has no locks, the folder
is marked by a file that its owner touches every few seconds: a start within a minute of a kill then has to wait.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from videomaker.errors import InputError

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HEARTBEAT, _SILENCE = 5.0, 60.0  # seconds between two signs of life; without one for so long, the owner is gone


class FolderLock:
    """The right to write into `folder`, which is made if it is not there.

    Raises:
        InputError: another run has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self._file: int | None = None
        self._released = threading.Event()
        self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}): give another output=") from error

    def _acquire(self) -> None:
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise self._refusal() from None
            except OSError as error:
                os.close(file)
                if error.errno not in _NO_LOCKS:
                    raise
                return self._acquire_without_locks()
            if _is_at(file, self.path):  # else its holder removed it between the two calls above
                self._file = file
            else:
                os.close(file)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, _about_me(), 0)
        # Workers are forked: a copy of the file in one that outlives this process would keep the lock.
        os.register_at_fork(after_in_child=self._close)

    def _acquire_without_locks(self) -> None:
        """Marks the folder by a file that only one process can make."""
        if self.path.exists() and self.path.stat().st_size:
            if self._silence() < _SILENCE:
                raise self._refusal()
            os.replace(self.path, gone := self.path.with_name(f"{NAME}.{uuid.uuid4().hex[:8]}"))
            gone.unlink()
        else:
            self.path.unlink(missing_ok=True)
        mark = self.path.with_name(f"{NAME}.{uuid.uuid4().hex[:8]}")
        mark.write_bytes(_about_me())
        try:
            os.link(mark, self.path)  # whole or not at all, and only for the first
        except FileExistsError:
            raise self._refusal() from None
        finally:
            mark.unlink()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def _silence(self) -> float:
        """Seconds since the owner's last sign of life, by the disk's own clock."""
        probe = self.folder / f"{NAME}.{uuid.uuid4().hex[:8]}"
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink()

    def _beat(self) -> None:
        while not self._released.wait(_HEARTBEAT):
            os.utime(self.path)

    def _refusal(self) -> InputError:
        try:
            owner = json.loads(self.path.read_text())
            who = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return InputError(f"{self.folder} is being written by {who}: wait for it, stop it, or give another output=")

    def release(self, *, unused: bool = False) -> None:
        """Gives the folder back; `unused` also removes what the lock had to make for itself, if it is still empty."""
        if self._released.is_set():
            return
        self._released.set()
        self.path.unlink(missing_ok=True)
        self._close()
        for folder in self._made if unused else ():
            try:
                folder.rmdir()
            except OSError:
                break

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _about_me() -> bytes:
    about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    return json.dumps(about).encode()
