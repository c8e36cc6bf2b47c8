"""Counts the moments of a run and kills it at one of them.

Python imports this at the start of every process that has its folder on PYTHONPATH, so that no process of a run, and no
line of the package, need know. `TPG_TEST_MOMENTS` holds JSON: `moments` (name: [kind, target]), `folder` for what is
noted, and `kill` (name and count) or null. Kinds: `before` and `after` a call of `module:name`; `torn`, the first half
of a write to a file of this name; `renaming` and `renamed`, before and after a file is given this name.
"""

import atexit
import contextlib
import fnmatch
import functools
import importlib.abc
import importlib.machinery
import json
import os
import pathlib
import signal
import sys


class Moments:
    """The moments that are counted in this process."""

    def __init__(self, moments, folder, kill):
        self.moments = moments
        self.folder = pathlib.Path(folder)
        self.kill = kill
        self.counts = dict.fromkeys(moments, 0)

    def of(self, *kinds):
        """Names, kinds and targets."""
        return [(name, kind, target) for name, (kind, target) in self.moments.items() if kind in kinds]

    def come(self, *names):
        """Count, and say whether this is where to die."""
        for name in names:
            self.counts[name] += 1
        return any(self.kill == [name, self.counts[name]] for name in names)

    def begin(self):
        """Let the process that dies find this one."""
        (self.folder / f"{os.getpid()}.pid").touch()
        atexit.register(self.end)

    def end(self):
        """Leave the counts, and be no more to be found."""
        if any(self.counts.values()):
            (self.folder / f"{os.getpid()}.counts").write_text(json.dumps(self.counts))
        (self.folder / f"{os.getpid()}.pid").unlink(missing_ok=True)

    def die(self):
        """Kill every process of the run, this one last."""
        (self.folder / "killed").write_text(json.dumps(self.kill))
        for path in self.folder.glob("*.pid"):
            if int(path.stem) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.stem), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class TornFile:
    """A file of which a write may stop halfway."""

    def __init__(self, file, moments, names):
        self._file, self._moments, self._names = file, moments, names

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def write(self, data):
        if self._moments.come(*self._names):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._moments.die()
        return self._file.write(data)

    def writelines(self, lines):
        self.write("".join(lines))


def watch_files(moments):
    """Tear writes, and stop at renamings."""
    opened, renamed = pathlib.Path.open, pathlib.Path.replace

    @functools.wraps(opened)
    def open_(self, mode="r", *arguments, **options):
        file = opened(self, mode, *arguments, **options)
        names = [name for name, _, target in moments.of("torn") if fnmatch.fnmatch(self.name, target)]
        return TornFile(file, moments, names) if names and "r" not in mode else file

    @functools.wraps(renamed)
    def replace(self, target):
        name = pathlib.Path(target).name
        before, after = ([n for n, _, t in moments.of(k) if fnmatch.fnmatch(name, t)] for k in ("renaming", "renamed"))
        if moments.come(*before):
            moments.die()
        result = renamed(self, target)
        if moments.come(*after):
            moments.die()
        return result

    pathlib.Path.open, pathlib.Path.replace = open_, replace


class Patches(importlib.abc.MetaPathFinder):
    """Wraps functions as soon as their module is loaded."""

    def __init__(self, moments):
        self.moments = moments
        self.wanted = {}
        for name, kind, target in moments.of("before", "after"):
            module, _, function = target.partition(":")
            self.wanted.setdefault(module, []).append((name, kind, function))

    def find_spec(self, name, path, target=None):
        if name not in self.wanted:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Loading(spec.loader, functools.partial(self.patch, self.wanted[name]))
        return spec

    def patch(self, wanted, module):
        for name, kind, function in wanted:
            *places, last = function.split(".")
            holder = functools.reduce(getattr, places, module)
            setattr(holder, last, self.wrapped(getattr(holder, last), name, kind))

    def wrapped(self, function, name, kind):
        @functools.wraps(function)
        def call(*arguments, **options):
            if kind == "before" and self.moments.come(name):
                self.moments.die()
            result = function(*arguments, **options)
            if kind == "after" and self.moments.come(name):
                self.moments.die()
            return result

        return call


class Loading(importlib.abc.Loader):
    """A loader that is followed by something else."""

    def __init__(self, loader, then):
        self.loader, self.then = loader, then

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.then(module)


if "TPG_TEST_MOMENTS" in os.environ:
    MOMENTS = Moments(**json.loads(os.environ["TPG_TEST_MOMENTS"]))
    MOMENTS.begin()
    watch_files(MOMENTS)
    sys.meta_path.insert(0, Patches(MOMENTS))
