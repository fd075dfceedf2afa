"""What differs between Linux, macOS and Windows: locks, signals, forked children, kills, and what a disk is asked.

All names that exist on POSIX systems alone are used here and nowhere else, each with what takes its place where it is
missing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
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
"""The number of SIGHUP, with which a run ends whose launcher is gone."""

_KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows SIGTERM ends a process at once

HELD = ".held"
"""Behind the name of a lock's file: the file that is locked where there is no ``flock``."""


# --- locks -----------------------------------------------------------------------------------------------------------


class ProcessLock:
    """The exclusive right of one process to something. It ends with the process, however that ends.

    Where ``flock`` exists the open file itself is locked. Elsewhere filelock locks a file beside it, since Windows lets
    nobody read what is locked, and the file says who the holder is.

    Args:
        file: open, and kept open for as long as the lock is held.
        path: under which it lies.
    """

    def __init__(self, file: IO[Any], path: Path) -> None:
        self.file = file
        self._beside: Any = None
        if fcntl is None:
            with warnings.catch_warnings(action="ignore"):  # that a lock by a marker file is all there is
                from filelock import FileLock

            self._beside = FileLock(str(path) + HELD, thread_local=False)

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: for as long as another process has it.

        Raises:
            BlockingIOError: another process has it.
            OSError: the file system has no locks.
        """
        if fcntl is not None:
            fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return
        from filelock import Timeout

        try:
            self._beside.acquire(timeout=-1 if wait else 0)
        except Timeout as error:
            raise BlockingIOError(str(error)) from error

    def release(self) -> None:
        """Give the lock back and close the file."""
        if fcntl is not None:
            fcntl.flock(self.file, fcntl.LOCK_UN)
        else:
            self._beside.release()
        self.file.close()

    def let_go(self) -> None:
        """In a forked child: close the inherited file, without giving back the lock that the parent has."""
        self.file.close()


def is_locked(file: IO[Any]) -> bool:
    """Whether another open file has the ``ProcessLock`` of this one; yes where there is no ``flock`` to ask."""
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
    """Call ``function`` in each child that this process forks; where nothing forks there is nothing to call."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def lives(number: int) -> bool:
    """Whether a process of this number is there, on this machine. Windows is not asked: there the answer is yes."""
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
    """The command line of a fresh process that calls a function of a module of HEALSg and ends with what it returns.

    The folder that holds the package comes last in the search path, and the current one not at all (``-P``).
    """
    text = f"import sys; sys.path.append(sys.argv.pop()); from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-P", "-c", text, str(Path(__file__).parents[1])]


def kill(number: int) -> None:
    """End a process at once; no code of it runs any more."""
    os.kill(number, _KILL)


def kill_family(child: subprocess.Popen[Any]) -> None:
    """End a child that was started with ``start_new_session=True``, and what it has started itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, _KILL)
        else:
            child.kill()  # loader workers end by themselves when their parent is gone


def was_killed(status: int) -> bool:
    """Whether a process that ended with ``status`` (as ``Popen.returncode`` gives it) was ended by ``kill``."""
    return status == -_KILL or (os.name != "posix" and status == _KILL)


def signal_name(number: int) -> str:
    """Such as ``SIGTERM``; the number where the system knows no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_only_by(parent: int) -> None:
    """In a forked child: let SIGTERM from ``parent`` end this process, and from any other be without effect.

    A thread waits for the signal, as a handler does not learn who has sent it. macOS has no ``sigwaitinfo``: there a
    SIGTERM of anybody is without effect, and ``parent`` has to kill.
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
    """The bytes of memory that the machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def available_memory() -> int | None:
    """The bytes that a process can still take without swapping, its control group's limit counted; None if unknown."""
    free: int | None = None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        free = left if free is None else min(free, left)
    return free


def _status(field: str) -> int | None:
    """A size that Linux tells of this process, in bytes."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
    return None


def held_memory() -> int | None:
    """The bytes of memory that this process holds now; None where the system does not say."""
    return _status("VmRSS")


def forget_peak_memory() -> bool:
    """Let ``peak_memory`` count from now on; False where the system cannot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_memory() -> int | None:
    """The most bytes of memory that this process has held at once so far; None where the system does not say."""
    if (known := _status("VmHWM")) is not None:
        return known
    with contextlib.suppress(ImportError):
        resource = import_module("resource")
        most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if os.uname().sysname == "Darwin" else 1024 * most
    return None


def process_age() -> float | None:
    """Seconds since this process began; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        began = ticks / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - began
    return None


def cpu_seconds() -> float:
    """The CPU time of this process and of its children, those that still run included where Linux tells it."""
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
    """Let a new file have ``size`` bytes that are reserved on the disk. Raises OSError where there is no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(1 << 20)  # a file that is only made longer has holes, and a full disk would show as SIGBUS
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlast a power cut. Windows opens no folders; NTFS keeps a journal of renames."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- memory ----------------------------------------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory(most: int) -> None:
    """Let this process reuse blocks of up to ``most`` bytes that it has freed, where glibc returns them to the system.

    glibc maps each block above 32 MiB anew, and gives the end of its heap back whenever that is free, as after each
    backward pass. The system then clears the same memory page by page, which takes longer than to normalise a batch of
    pictures. For a process that makes blocks of the same sizes again and again, as a loader's worker or a training step
    does; other C libraries keep their ways.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        library = import_module("ctypes").CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, most)
        library.mallopt(_M_TRIM_THRESHOLD, most)
