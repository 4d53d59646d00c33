from __future__ import annotations

import pytest

from detkd.errors import InputError
from detkd.runtime.ending import Ending, at_end, endings


def run(ending: Ending, error: BaseException | None = None) -> None:
    with endings():
        at_end(ending)
        if error is not None:
            raise error


def test_what_is_to_be_last_is_called_once_however_it_ends() -> None:
    called: list[bool] = []
    run(called.append)
    assert called == [False]
    with endings():
        pass
    assert called == [False]
    with pytest.raises(SystemExit):
        run(called.append, SystemExit(2))
    assert called == [False, True]


def test_of_two_errors_the_command_s_own_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(failed: bool) -> None:
        raise InputError("no table")

    with pytest.raises(ValueError, match="of the job"):
        run(fails, ValueError("of the job"))
    assert capsys.readouterr().err == "note: no table\n"
    with pytest.raises(InputError, match="no table"):
        run(fails)
