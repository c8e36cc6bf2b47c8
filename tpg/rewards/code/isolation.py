"""Linux namespaces: no network, no other process, no file but Python's library and an empty working directory."""

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NAMESPACES = {"user": 0x10000000, "mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "net": 0x40000000}
NEW_PID = 0x20000000
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES, CHILD_SUBREAPER, DROP_BOUND = 1, 38, 36, 24
CAPABILITY_VERSION_3 = 0x20080522
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
OTHER_USER = 1
"""Within the user namespace: who runs the response where root has started us."""
WORK = "/.response"

_libc = ctypes.CDLL(None, use_errno=True)


def called(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0. Raises `OSError`, and for one that there is not."""
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(f"this C library has no {name}") from None
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def control(option: int, value: int) -> None:
    """Call prctl."""
    called("prctl", ctypes.c_int(option), *(ctypes.c_ulong(each) for each in (value, 0, 0, 0)))


def die_with_parent(parent: int) -> None:
    """End when the process that started this one does; at once if it has ended."""
    control(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def enter_namespaces() -> None:
    """Leave the network, the mounts and the user behind; children get a process namespace. Raises `OSError`.

    Root's response is to be another user's, so that the kernel counts its processes. A process of its own writes the
    maps, as only one outside may name two users.
    """
    uid, gid, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    ready = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(ready[1])
            if os.read(ready[0], 1):
                other = f"\n{OTHER_USER} {2**30 + target} 1" if root else ""
                folder = Path(f"/proc/{target}")
                if not root:
                    (folder / "setgroups").write_text("deny")
                (folder / "gid_map").write_text(f"0 {gid} 1{other}")
                (folder / "uid_map").write_text(f"0 {uid} 1{other}")
                code = 0
        finally:
            os._exit(code)
    try:
        called("unshare", ctypes.c_int(sum(NAMESPACES.values()) | NEW_PID))
        os.write(ready[1], b"1")
    finally:
        for end in ready:
            os.close(end)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("the user namespace's maps cannot be written")


def new_process_namespace() -> None:
    """Let the next child be the first of a namespace, from which it sees no other process, nor what others shared."""
    called("unshare", ctypes.c_int(NEW_PID | NAMESPACES["ipc"]))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    text = (each.encode() if each is not None else None for each in (source, target, kind))
    called("mount", *text, ctypes.c_ulong(flags), data.encode() if data is not None else None)


def _bound(source: str, base: str) -> None:
    """Show a folder or device of the machine's within `base`, where it was, read-only."""
    target = base + source
    if Path(source).is_dir():
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    _mount(source, target, None, BIND | RECURSIVE)
    if Path(source).is_dir():
        kept = os.statvfs(target).f_flag & (NO_SETUID | NO_DEVICES | 8)  # 8: what may not be executed
        _mount(None, target, None, BIND | REMOUNT | READ_ONLY | NO_SETUID | kept)


def enter_root(base: str, libraries: Sequence[str]) -> None:
    """Make a root of nothing but libraries and devices, mounted on the folder `base`, and change to it."""
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", base, "tmpfs", NO_SETUID | NO_DEVICES, "size=1m,mode=755")
    done: list[str] = []
    for library in sorted({os.path.realpath(each) for each in (*libraries, *SYSTEM_LIBRARIES) if os.path.isdir(each)}):
        if not any(library.startswith(f"{above}/") for above in done):
            _bound(library, base)
            done.append(library)
    for link in SYSTEM_LIBRARIES:
        if os.path.islink(link):
            os.symlink(os.path.realpath(link), base + link)
    for device in DEVICES:
        _bound(device, base)
    os.mkdir(base + WORK)
    if not os.path.exists(base + "/tmp"):
        os.symlink(WORK, base + "/tmp")
    os.chdir(base)
    called("pivot_root", b".", b".")
    called("umount2", b".", ctypes.c_int(DETACH))
    os.chdir("/")
    _mount(None, "/", None, BIND | REMOUNT | READ_ONLY | NO_SETUID | NO_DEVICES)


def fresh_work(megabytes: int) -> None:
    """Mount an empty working directory that holds so much, and change to it."""
    owner = OTHER_USER if _knows(OTHER_USER) else 0
    _mount(
        "tmpfs",
        WORK,
        "tmpfs",
        NO_SETUID | NO_DEVICES,
        f"size={megabytes}m,nr_inodes=4096,mode=700,uid={owner},gid={owner}",
    )
    os.chdir(WORK)


def leave_work() -> None:
    """Forget it and all that is in it."""
    os.chdir("/")
    called("umount2", WORK.encode(), ctypes.c_int(DETACH))


_maps = ""


def remember_maps() -> None:
    """Read who is who, which cannot be read once the root has changed; nobody may nest namespaces from now on."""
    global _maps
    _maps = Path("/proc/self/uid_map").read_text()
    with suppress(OSError):  # containers may show it read-only
        Path("/proc/sys/user/max_user_namespaces").write_text("0")


def _knows(user: int) -> bool:
    return any(int(line.split()[0]) == user for line in _maps.splitlines())


def drop_privileges(other_user: bool) -> None:
    """Be nobody who may do anything, for good."""
    for capability in range(64):
        try:
            control(DROP_BOUND, capability)
        except OSError:  # the kernel knows no more of them
            break
    if other_user and _knows(OTHER_USER):
        os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
        os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    called("capset", header, bytes(24))
    control(NO_NEW_PRIVILEGES, 1)


def limit(seconds: int, memory_mb: int, file_mb: int, processes: int | None) -> None:
    """Bound what this process and each of its children may use."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_mb * 2**20,
        resource.RLIMIT_FSIZE: file_mb * 2**20,
        resource.RLIMIT_CORE: 0,
        **({} if processes is None else {resource.RLIMIT_NPROC: processes, resource.RLIMIT_NOFILE: 64}),
    }
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        lower = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(kind, (lower, lower))


def counted_beside(isolated: bool) -> int:
    """How many processes and threads the kernel counts with a response's: those of the same user and namespace."""
    if isolated:
        return 0 if _knows(OTHER_USER) else 3  # the harness's own, beside the one that runs the response
    own, count = os.getuid(), 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def libraries(installed_packages: bool) -> list[str]:
    """Where Python's own modules are, and those that are installed."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), f"{sys.base_prefix}/lib"]
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")] if installed_packages else []
    own = [] if sys.base_prefix == "/usr" else paths
    return [path for path in (*own, *packages) if path]
