"""What every test may use: `builders`, as pytest puts this folder on `sys.path`, and entries run in this process."""

import sys

import pytest


@pytest.fixture
def entry(monkeypatch, tmp_path, capsys):
    """An entry's module in this process and an empty folder: exit code, what is printed, lines on stderr."""
    from hydra.core.global_hydra import GlobalHydra

    import tpg.jobs.entry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the entry; here so that it is undone
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tpg.jobs.entry, "WANTS_TRACEBACK", False)

    def call(module, *arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    yield call
    GlobalHydra.instance().clear()
