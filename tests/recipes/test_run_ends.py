"""How the run of a program ends: what is saved, and by which signal."""

import os
import signal

import pytest
from keras_dsnet_recipes.lib import run, start, supervisor


class Training:
    """Stands in for a `TrainingRun` whose `fit` does something else."""

    is_chief = True

    def __init__(self, fit, holds_last_epoch):
        self.fit, self.holds_last_epoch = fit, lambda: holds_last_epoch
        self.stops = 0

    def stop(self):
        self.stops += 1


def refuse():
    raise ValueError("was started with other classes")


@pytest.mark.parametrize(("holds_last_epoch", "saves"), [(False, []), (True, ["network"])])
def test_a_refused_run_keeps_the_network_that_was_saved(monkeypatch, holds_last_epoch, saves):
    monkeypatch.setattr(supervisor, "is_wanted", lambda: False)
    saved = []
    with pytest.raises(ValueError, match="other classes"):
        run.fit(Training(refuse, holds_last_epoch), lambda: saved.append("network"))
    assert saved == saves


def test_a_worker_ends_by_a_signal_that_came_after_its_last_step(monkeypatch):
    monkeypatch.setattr(supervisor, "is_wanted", lambda: True)
    before = signal.getsignal(signal.SIGTERM)
    training = Training(lambda: os.kill(os.getpid(), signal.SIGTERM), True)
    with pytest.raises(start._Ended):
        run.fit(training, lambda: None)
    assert training.stops == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_other_than_the_chief_may_have_other_paths(monkeypatch, tmp_path):
    from keras_dsnet.runs import WorkDir

    monkeypatch.setattr(run.run_flags, "configuration", lambda: {"dataset": str(tmp_path / "b")})
    monkeypatch.setattr(run, "FLAGS", type("Flags", (), {"workdir": str(tmp_path / "run")}))
    workdir = WorkDir(tmp_path / "run", {"dataset": str(tmp_path / "a")}, paths=("dataset",))
    workdir.checkpoint.touch()
    monkeypatch.setattr(run, "is_chief", lambda: False)
    run.open_workdir(check_only=True)
    monkeypatch.setattr(run, "is_chief", lambda: True)
    with pytest.raises(ValueError, match="--dataset"):
        run.open_workdir(check_only=True)
