"""Shows this project's modules another operating system than the one they run on.

Python imports a module of this name when a process begins, where its folder is on the path. Other
packages see the system as it is: they have releases for each. What ours see is what Python's
documentation says of `OTHER_SYSTEM`, win32 or darwin: modules and names that it lacks, and on
Windows no renaming or removing of an open file, no name with a reserved character, and another
encoding than UTF-8 wherever none is named. Triton is absent, and processes are spawned.
"""

import builtins
import fcntl
import importlib
import multiprocessing
import os
import sys
import warnings
from types import ModuleType, SimpleNamespace

SYSTEM = os.environ["OTHER_SYSTEM"]
OURS = ("geollava", "tokenprune")

LINUX_ALONE = {
    "os": "memfd_create sched_getaffinity sched_setaffinity pidfd_open splice eventfd getrandom "
    "posix_fallocate posix_fadvise copy_file_range pipe2 fdatasync setresuid getresuid",
    "resource": "prlimit RUSAGE_THREAD",
    "select": "epoll",
    "signal": "sigtimedwait sigwaitinfo SIGPWR SIGRTMIN SIGRTMAX SIGSTKFLT",
    "socket": "AF_NETLINK AF_PACKET AF_VSOCK",
}
UNIX_ALONE = {
    "mmap": "MAP_SHARED MAP_PRIVATE MAP_ANON MAP_ANONYMOUS PROT_READ PROT_WRITE PROT_EXEC "
    "MADV_DONTNEED",
    "os": "WNOHANG chown chroot confstr ctermid environb fchdir fchown fork forkpty geteuid getgid "
    "getgroups getloadavg getpgid getpgrp getpriority getsid getuid initgroups killpg lchown lockf "
    "major mkfifo mknod nice openpty pathconf posix_spawn posix_spawnp pread preadv pwrite pwritev "
    "readv register_at_fork sched_yield sendfile setegid seteuid setgid setpgid setpriority setsid "
    "setuid statvfs sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid writev "
    "O_CLOEXEC O_DIRECTORY O_DSYNC O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC get_blocking set_blocking",
    "select": "epoll poll",
    "signal": "ITIMER_REAL SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP "
    "SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH alarm getitimer pause pthread_kill pthread_sigmask setitimer "
    "siginterrupt sigpending sigwait",
    "socket": "AF_UNIX socketpair",
    "time": "clock_getres clock_gettime pthread_getcpuclockid tzset",
}
UNIX_MODULES = (
    "curses fcntl grp posix pty pwd readline resource spwd syslog termios tty "
    "multiprocessing.popen_fork"
)
RESERVED = set('<>:"|?*')


class Module(ModuleType):
    """A module without some of its names, and with some that are other."""

    def __init__(self, module, missing, **other):
        vars(self).update(other, __name__=module.__name__, _module=module, _missing=set(missing))

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on {SYSTEM}")
        return getattr(self._module, name)

    def __setattr__(self, name, value):
        setattr(self._module, name, value)


def missing_names():
    found = {module: names.split() for module, names in LINUX_ALONE.items()}
    if SYSTEM == "win32":
        for module, names in UNIX_ALONE.items():
            found[module] = found.get(module, []) + names.split()
    return found


def locking(handle, mode, nbytes):
    """msvcrt's: without waiting, as `LK_NBLCK` does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error


def windows_alone(function):
    """A function of `subprocess` that refuses what Windows cannot do."""

    def call(*arguments, **options):
        if options.get("text") and not options.get("encoding"):
            raise ValueError("Windows expects another encoding than UTF-8 of this text")
        for name in ("pass_fds", "preexec_fn", "start_new_session", "process_group", "umask"):
            if options.get(name) not in (None, False, -1, ()):
                raise ValueError(f"{name} is not supported on Windows platforms")
        return function(*arguments, **options)

    return call


def modules():
    """What ours get when they import a module by this name."""
    other = {
        "platform": {"system": lambda: {"win32": "Windows", "darwin": "Darwin"}[SYSTEM]},
        "sys": {"platform": SYSTEM},
    }
    if SYSTEM == "win32":
        import subprocess

        other["os"] = {"O_BINARY": 0, "O_TEMPORARY": 0}
        other["subprocess"] = {
            name: windows_alone(getattr(subprocess, name))
            for name in ("Popen", "run", "call", "check_call", "check_output")
        }
    missing = missing_names()
    absent = UNIX_MODULES.split() if SYSTEM == "win32" else []
    found = {
        name: Module(importlib.import_module(name), missing.get(name, ()), **other.get(name, {}))
        for name in {*missing, *other} - {*absent}
    }
    if SYSTEM == "win32":
        memory = SimpleNamespace(peak_wset=2**29)
        process = SimpleNamespace(memory_info=lambda: memory)
        found["psutil"] = SimpleNamespace(Process=lambda: process)
        found["msvcrt"] = SimpleNamespace(LK_NBLCK=2, locking=locking)
    return found | dict.fromkeys(absent)


def change_imports():
    """Ours get these modules, by whatever kind of import statement."""
    shown, real = modules(), builtins.__import__

    def changed(name, *arguments, **options):
        importing = arguments[0] if arguments else options.get("globals")
        importer = str((importing or {}).get("__name__")).partition(".")[0]
        if importer not in OURS or name not in shown:  # of ours, no module is called so
            return real(name, *arguments, **options)
        if shown[name] is None:
            raise ModuleNotFoundError(f"No module named {name!r} on {SYSTEM}", name=name)
        return shown[name]

    builtins.__import__ = changed


def hold_open_files():
    """No file that this process has open or mapped is renamed or removed."""

    def held(path):
        target = os.path.realpath(path)
        handles = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        if target in [os.path.realpath(handle) for handle in handles]:
            return True
        with open("/proc/self/maps", encoding="utf-8") as file:
            return any(line.rstrip("\n").endswith(f" {target}") for line in file)

    def guarded(function, paths):
        def call(*arguments, **options):
            for path in arguments[:paths]:
                if "dir_fd" not in options and os.path.exists(path) and held(path):
                    raise PermissionError(13, f"{path} is being used by another process")
            return function(*arguments, **options)

        return call

    for name, paths in (("rename", 2), ("replace", 2), ("unlink", 1), ("remove", 1), ("rmdir", 1)):
        setattr(os, name, guarded(getattr(os, name), paths))


def refuse_names(event, arguments):
    """No file or folder is made whose name Windows does not allow."""
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & os.O_CREAT:
            return
    elif event in ("os.mkdir", "os.rename"):
        path = arguments[event == "os.rename"]
    else:
        return
    name = os.path.basename(os.fsdecode(path))
    if RESERVED & set(name) or name.endswith((" ", ".")):
        raise OSError(22, "Invalid argument", name)


sys.modules["triton"] = None
multiprocessing.set_start_method("spawn", force=True)
if SYSTEM == "win32":
    hold_open_files()
    sys.addaudithook(refuse_names)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"(geollava|tokenprune)\b")
change_imports()
