"""The process of a program: `python -IB code_child.py SECONDS BYTES` (see `code.py`).

The source comes on standard input; `passed`, `timed out` or `failed: …` goes to
standard output, which the program has not. Nothing but Python is needed here.
"""

import ctypes
import os
import resource
import signal
import sys
import types

NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
FILES = 16 << 20  # bytes of the largest file that may be written
# Audit events of Python: what is refused, and what is refused outside of the folder.
REFUSED = ("socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo",
           "socket.gethostby", "subprocess.", "os.system", "os.exec", "os.fork",
           "os.posix_spawn", "os.spawn", "os.kill")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown",
           "os.truncate", "os.link", "os.symlink", "shutil.rmtree")  # fmt: skip


def main() -> None:
    """Runs what standard input has; the first line told is what counts."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    source, told = sys.stdin.buffer.read(), os.dup(1)

    def tell(line: str) -> None:
        os.write(told, line.encode("utf-8", "replace") + b"\n")

    def end(line: str) -> None:
        tell(line)
        os.killpg(0, signal.SIGKILL)

    apart()
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        tell(judged(source, seconds, memory))
        os._exit(0)
    signal.signal(signal.SIGALRM, lambda *_: end("timed out"))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status = os.waitpid(child, 0)
    end(f"failed: the process ended with {os.waitstatus_to_exitcode(status)}")


def apart() -> None:
    """A network and process ids of one's own, where the system allows it.

    The first process of the latter takes all that it started with it when it ends.
    """
    unshare = ctypes.CDLL(None).unshare
    if unshare(NEW_NETWORK | NEW_PROCESSES):
        unshare(NEW_USER | NEW_NETWORK | NEW_PROCESSES)


def judged(source: bytes, seconds: float, memory: int) -> str:
    """What becomes of a program in this process."""
    cpu = int(seconds) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    module = sys.modules["program"] = types.ModuleType("program")
    sys.addaudithook(guard(os.path.realpath(os.curdir)))
    try:
        exec(compile(source, "program", "exec"), module.__dict__)
    except BaseException as error:  # exits and interrupts, too, are failures
        return f"failed: {type(error).__name__}: {error}"[:300]
    return "passed"


def guard(home: str):
    """An audit hook that refuses network, processes, and changes outside of `home`."""
    home += os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed")
        changes = event.startswith(CHANGES)
        if event == "open":
            path, _, flags = arguments
            changes, arguments = flags & writing, (path,)
        if not changes:
            return
        for path in arguments:
            if isinstance(path, str | bytes | os.PathLike):
                name = os.path.realpath(os.fsdecode(path))
                if not name.startswith(home) and name != os.devnull:
                    raise PermissionError(f"{event} of {name} is not allowed")

    return hook


if __name__ == "__main__":
    main()
