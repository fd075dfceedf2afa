"""``launch``: one run from a configuration and a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from healsg.commands.launch.launching import Result, launch
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import RunError
from healsg.runs.folder import RunFolder

TINY = ["model=mlp", "model.width=4", "runner.steps=3", "quiet=true", "name=one"]


def test_a_run_is_launched_in_its_folder_and_its_numbers_come_back() -> None:
    composed = Composer().compose(TINY)
    folder = RunFolder(Path("runs/one").absolute())
    result = launch(composed, folder)
    record = RunFolder(folder.path).record
    assert (result.status, result.exit) == ("finished", 0) == (record["status"], 0)
    assert result.best == record["best"]
    assert result.test == record["test"] != {}
    with pytest.raises(RunError, match="is finished"):
        launch(composed, folder)


def test_another_launcher_takes_the_place_of_this_process() -> None:
    asked = []

    def elsewhere(composed: Composed, folder: RunFolder) -> Result:
        asked.append((composed.values["runner"]["steps"], folder.path.name))
        return Result("stopped", 143)

    result = launch(Composer().compose(TINY), RunFolder(Path("runs/one")), elsewhere)
    assert result == Result("stopped", 143)
    assert asked == [(3, "one")]
    assert not Path("runs").exists()
