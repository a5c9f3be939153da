"""The public names: there, documented, typed."""

import importlib
import importlib.resources
import inspect
from typing import Any

import pytest

DESIGN = {
    "scheduler": {
        *("Scheduler", "Rate", "Quota", "Cost", "Usage", "Policy", "Job", "Ticket", "Quote", "Grant"),
        *(
            "Handler",
            "Statistics",
            "Retry",
            "ErrRateLimited",
            "QuotaExceeded",
            "DeadlineExceeded",
            "JobFailed",
        ),
        *("UpstreamError", "SchedulerClosed", "SchedulerError"),
    },
    "agent": {"Agent", "Message", "Reply", "Session"},
}


@pytest.mark.parametrize("package", DESIGN)
def test_every_name_of_the_design_is_public(package: str) -> None:
    module = importlib.import_module(package)
    assert DESIGN[package] <= set(module.__all__)


@pytest.mark.parametrize("package", DESIGN)
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("package", DESIGN)
def test_every_public_class_and_function_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    named = [(name, getattr(module, name)) for name in module.__all__]
    undocumented = [name for name, value in named if not has_own_docstring(name, value)]
    assert undocumented == []


def has_own_docstring(name: str, value: Any) -> bool:
    """Tell a written docstring from one that was generated or inherited; aliases and constants have none."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return True
    text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    return bool(text) and not str(text).startswith(f"{name}(")


@pytest.mark.parametrize("package", DESIGN)
def test_type_checkers_are_told_that_the_package_is_typed(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()
