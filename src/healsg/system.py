"""What differs between Linux, macOS and Windows: locks, signals, forked children, kills, memory and disks.

Names that only POSIX systems have are used here and nowhere else, each with a fallback for other systems.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has none
    fcntl = import_module("fcntl")

STOP_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
)
"""The signals by which a user or a scheduler asks a run to stop: Slurm sends SIGUSR1, a closed Windows console
SIGBREAK."""

HANGUP: int = getattr(signal, "SIGHUP", 1)
"""The number of SIGHUP, by which a run ends after its launcher has ended."""

_KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows SIGTERM ends a process at once

HELD = ".held"
"""Suffix of the second file, next to the lock file, that is locked on systems without ``flock``."""


# --- locks -----------------------------------------------------------------------------------------------------------


class ProcessLock:
    """An exclusive lock of one process. It is released when the process ends, however it ends.

    With ``flock`` the open file itself is locked. On other systems filelock locks a second file next to it: on Windows
    a locked file cannot be read, and the first file names the holder of the lock.

    Args:
        file: the open file, which stays open while the lock is held.
        path: its path.
    """

    def __init__(self, file: IO[Any], path: Path) -> None:
        self.file = file
        self._second_lock: Any = None
        if fcntl is None:
            with warnings.catch_warnings(action="ignore"):  # filelock warns if only a marker file can serve as a lock
                from filelock import FileLock

            self._second_lock = FileLock(str(path) + HELD, thread_local=False)

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: whether to wait while another process holds it.

        Raises:
            BlockingIOError: another process holds it.
            OSError: the file system does not support locks.
        """
        if fcntl is not None:
            fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return
        from filelock import Timeout

        try:
            self._second_lock.acquire(timeout=-1 if wait else 0)
        except Timeout as error:
            raise BlockingIOError(str(error)) from error

    def release(self) -> None:
        """Release the lock and close the file."""
        if fcntl is not None:
            fcntl.flock(self.file, fcntl.LOCK_UN)
        else:
            self._second_lock.release()
        self.file.close()

    def let_go(self) -> None:
        """In a forked child: close the inherited file without releasing the parent's lock."""
        self.file.close()


def is_locked(file: IO[Any]) -> bool:
    """Whether a ``ProcessLock`` of this file is held through another open file; True on systems without ``flock``."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


# --- processes -------------------------------------------------------------------------------------------------------


def in_forked_child(function: Callable[[], object]) -> None:
    """Call ``function`` in each child that this process forks; does nothing on systems without fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def lives(number: int) -> bool:
    """Whether a process with this number exists on this machine; always True on Windows."""
    if os.name != "posix":
        return True  # os.kill(number, 0) would send Ctrl-C there
    try:
        os.kill(number, 0)
    except OverflowError:  # no process has such a number
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def program(module: str, function: str) -> list[str]:
    """The command line of a new process that calls a function of a module of HEALSg and exits with what it returns.

    The folder that holds the package comes last in ``sys.path``; the current directory is not in it (``-P``).
    """
    text = f"import sys; sys.path.append(sys.argv.pop()); from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-P", "-c", text, str(Path(__file__).parents[1])]


def take_command_line(command: list[str]) -> None:
    """In a process that a command has started: the command line of that command becomes this process's own.

    ``run.json`` records it as the way to start the run again, and its secrets are redacted.
    """
    sys.argv = command


def kill(number: int) -> None:
    """Kill a process; none of its code, such as signal handlers, runs any more."""
    os.kill(number, _KILL)


@contextlib.contextmanager
def killed_after(child: subprocess.Popen[Any], seconds: float) -> Iterator[None]:
    """A context in which a child process is killed if the context lasts longer than this."""
    import threading

    timer = threading.Timer(seconds, child.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def kill_family(child: subprocess.Popen[Any]) -> None:
    """Kill a child that was started with ``start_new_session=True``, and its own children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, _KILL)
        else:
            child.kill()  # loader workers end by themselves when their parent is gone


def was_killed(status: int) -> bool:
    """Whether a process that ended with ``status`` (as ``Popen.returncode`` gives it) was ended by ``kill``."""
    return status == -_KILL or (os.name != "posix" and status == _KILL)


def signal_name(number: int) -> str:
    """The name of a signal, such as ``SIGTERM``; its number if the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_only_by(parent: int) -> None:
    """In a forked child: end this process on SIGTERM from ``parent``, and ignore SIGTERM from any other process.

    A thread waits for the signal, because a signal handler does not learn the sender. macOS has no ``sigwaitinfo``:
    there every SIGTERM is ignored, and ``parent`` has to kill the process.
    """
    import threading

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if not hasattr(signal, "sigwaitinfo"):
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# --- memory and disk -------------------------------------------------------------------------------------------------


def physical_memory() -> int | None:
    """The memory of the machine in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def available_memory() -> int | None:
    """The memory in bytes that can be allocated without swapping, within the control group's limit; None if unknown."""
    free: int | None = None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max" if there is no limit
        group = Path("/sys/fs/cgroup")
        left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        free = left if free is None else min(free, left)
    return free


def _status(field: str) -> int | None:
    """A field of ``/proc/self/status`` that is a size, in bytes; None on systems other than Linux."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
    return None


def held_memory() -> int | None:
    """The resident memory of this process in bytes; None if the system does not report it."""
    return _status("VmRSS")


def forget_peak_memory() -> bool:
    """Reset ``peak_memory``; False if the system cannot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_memory() -> int | None:
    """The peak resident memory of this process in bytes; None if the system does not report it."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    with contextlib.suppress(ImportError):
        resource = import_module("resource")
        largest: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, else in KiB
        return largest if os.uname().sysname == "Darwin" else 1024 * largest
    return None


def process_age() -> float | None:
    """Seconds since this process started; None if the system does not report it."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    return None


def cpu_seconds() -> float:
    """The CPU time of this process and its children in seconds; on Linux including children that still run."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    with contextlib.suppress(OSError, ValueError, AttributeError):
        ticks = os.sysconf("SC_CLK_TCK")
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError, IndexError):  # it has just ended
                    fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
                    total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def reserve(file: IO[bytes], size: int) -> None:
    """Allocate ``size`` bytes on disk for a new file. Raises OSError if there is not enough space."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(1 << 20)  # truncate() would leave holes, and a full disk would raise SIGBUS when they are written
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power failure. Windows cannot open folders; NTFS journals renames."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- memory ----------------------------------------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


@cache
def _c_library() -> Any:
    """The C library, as ctypes has it; looking it up takes as long as reading a small batch."""
    return import_module("ctypes").CDLL("libc.so.6")


def keep_freed_memory(most: int) -> None:
    """Make glibc keep freed blocks of up to ``most`` bytes for reuse, instead of returning them to the system.

    By default glibc maps each block above 32 MiB anew, and returns the end of its heap whenever that is free, as after
    each backward pass. The system then clears the same memory page by page, which takes longer than normalising a batch
    of images. This helps processes that allocate blocks of the same sizes again and again, such as a loader's worker or
    a training step. It has no effect with other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        library = _c_library()
        library.mallopt(_M_MMAP_THRESHOLD, most)
        library.mallopt(_M_TRIM_THRESHOLD, most)


def share_one_heap() -> None:
    """Make threads to come share the first thread's heap with glibc, which else gives each a heap of its own that keeps
    what it once took. It has no effect with other C libraries."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        import_module("ctypes").CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Make glibc return freed blocks to the system; the end of a heap only of the first thread's, see
    ``share_one_heap``. It has no effect with other C libraries."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        import_module("ctypes").CDLL("libc.so.6").malloc_trim(0)
