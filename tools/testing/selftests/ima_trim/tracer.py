# SPDX-License-Identifier: GPL-2.0
"""Runs a program and stops, or fails, one of its system calls: by ptrace(2), so that it is exactly that one."""

import ctypes
import os
import platform
import signal
import struct

# What changes something outside of the process, but for its descriptors.
NUMBERS = {
    "x86_64": {
        "write": 1, "open": 2, "pwrite64": 18, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
        "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "openat": 257, "mkdirat": 258, "unlinkat": 263,
        "renameat2": 316, "move_mount": 429, "fsconfig": 431, "exit_group": 231, "pread64": 17,
        "getdents64": 217,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "flock": 32, "fsync": 82, "fdatasync": 83, "ftruncate": 46, "openat": 56,
        "mkdirat": 34, "unlinkat": 35, "renameat2": 276, "move_mount": 429, "fsconfig": 431, "exit_group": 94,
        "pread64": 67, "getdents64": 61,
    },
}[platform.machine()]
NAMES = {number: name for name, number in NUMBERS.items()}
READS = ("pread64", "getdents64")

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_INFO, _SET_INFO = 0, 24, 0x4200, 0x420e, 0x4212
# PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL
_OPTIONS = 1 | 1 << 20
# struct ptrace_syscall_info: op, reserved, flags, arch, ip, sp; then, at an entry, the number and the arguments, at an
# exit the value and whether it is an error.
_HEAD, _ENTRY, _EXIT = "=BBHIQQ", "=Q6Q", "=qB"
_OP_ENTRY, _OP_EXIT = 1, 2
_SIZE = 88

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request, pid, address=0, data=0):
    result = _libc.ptrace(request, pid, address, data)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request:#x}: {os.strerror(number)}")
    return result


class Call:
    """A system call that is about to be made."""

    def __init__(self, pid, number, arguments):
        self.pid = pid
        self.name = NAMES.get(number, str(number))
        self.arguments = arguments

    def path(self):
        """The path that it names, without the directory that it begins in, or that of its descriptor."""
        place = {"openat": 1, "mkdirat": 1, "unlinkat": 1, "renameat2": 3, "move_mount": 3,
                 "open": 0, "mkdir": 0, "rmdir": 0, "unlink": 0, "rename": 1}.get(self.name)
        try:
            if place is None:
                return os.readlink(f"/proc/{self.pid}/fd/{self.arguments[0]}")
            with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
                memory.seek(self.arguments[place])
                return memory.read(256).split(b"\0")[0].decode(errors="replace")
        except OSError:
            return ""

    def changes(self):
        """Whether it may change something that outlives the process."""
        if self.name in ("open", "openat"):
            return bool(self.arguments[1 + (self.name == "openat")] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if self.name in ("write", "pwrite64"):
            return self.arguments[0] > 2
        return self.name in NUMBERS and self.name not in READS

    def __str__(self):
        return f"{self.name} {self.path()}"


class Outcome:
    """How a program ended."""

    def __init__(self, status, output, error, at):
        # Less than 0: the signal that ended it.
        self.status = status
        self.output = output
        self.error = error
        # What was done at the call that was chosen; None if there was none.
        self.at = at


def run(command, choose, kill=None, fail=None):
    """Runs a program to the system call that is chosen, and what follows of it.

    `choose` is called with each Call, and says whether it is the one. There it is killed, with kill="before" or
    "after"; or the call is not made, and gives the error `fail`. Neither: it is only looked at.
    """
    outputs = [os.memfd_create(name) for name in ("output", "error")]
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(outputs[0], 1)
            os.dup2(outputs[1], 2)
            _ptrace(_TRACEME, 0)
            os.execv(command[0], command)
        finally:
            os._exit(127)
    at = None
    info = ctypes.create_string_buffer(_SIZE)
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
    pending = False
    passed_on = 0

    def end():
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]

    while True:
        _ptrace(_SYSCALL, pid, 0, passed_on)
        passed_on = 0
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            break
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            # A signal of its own; that of execve(2) is none.
            passed_on = 0 if os.WSTOPSIG(status) == signal.SIGTRAP else os.WSTOPSIG(status)
            continue
        _ptrace(_GET_INFO, pid, _SIZE, ctypes.addressof(info))
        head = struct.calcsize(_HEAD)
        if info.raw[0] == _OP_ENTRY:
            number, *arguments = struct.unpack_from(_ENTRY, info, head)
            call = Call(pid, number, arguments)
            if at is None and choose(call):
                at = str(call)
                if kill == "before":
                    # A call that has not begun is not made any more.
                    status = end()
                    break
                if fail:
                    struct.pack_into("=Q", info, head, 2**64 - 1)
                    _ptrace(_SET_INFO, pid, _SIZE, ctypes.addressof(info))
                pending = True
        elif pending:
            pending = False
            if kill == "after":
                status = end()
                break
            if fail:
                struct.pack_into(_EXIT, info, head, -fail, 1)
                _ptrace(_SET_INFO, pid, _SIZE, ctypes.addressof(info))
    texts = []
    for fd in outputs:
        texts.append(os.pread(fd, 1 << 24, 0).decode(errors="replace"))
        os.close(fd)
    return Outcome(os.waitstatus_to_exitcode(status), *texts, at)


class Nth:
    """Chooses the nth call, counted from 1, of those that a function accepts."""

    def __init__(self, number, accepts):
        self.left = number
        self.accepts = accepts

    def __call__(self, call):
        if not self.accepts(call):
            return False
        self.left -= 1
        return self.left == 0
