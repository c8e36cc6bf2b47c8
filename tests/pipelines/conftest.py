"""These tests use what those of training do, and run pipelines in this process."""

import contextlib
import importlib
import io
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "training"))


@pytest.fixture
def in_process(entry, tmp_path, monkeypatch):
    """Runs a pipeline with stages in this process: the exit code, the names of the stages that ran (` again` where one
    was continued), stdout and stderr. `here` stands for `run_stage`.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    import tpg.pipeline
    from tpg.pipelines import running

    monkeypatch.chdir(tmp_path)
    begun = []

    def here(command, lock, variables, output=None):
        """As `run_stage` does it."""
        state, argv = Singleton.get_state(), sys.argv
        GlobalHydra.instance().clear()
        sys.argv = command[2:]
        name = next(
            (Path(word.split("=")[1]).name for word in sys.argv if word.startswith(("run_dir=", "resume="))), "judged"
        )
        begun.append(name if sys.argv[1].startswith("run") else f"{name} again")
        code, printed = 0, io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                importlib.import_module(sys.argv[0]).main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = argv
            GlobalHydra.instance().clear()
            Singleton.set_state(state)
        if output is not None:
            output.write_text(printed.getvalue())
        return code

    monkeypatch.setattr(running, "run_stage", here)

    def call(*arguments):
        begun.clear()
        code, out, err = entry(tpg.pipeline, *arguments)
        return code, list(begun), out, err

    call.here = here
    return call
