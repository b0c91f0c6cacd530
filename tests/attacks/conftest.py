"""Questions that the embedded model answers."""

import pytest

from tests.conftest import ROOT
from unlearn.evaluation.suite import load_suite


@pytest.fixture(scope="session")
def asked():
    tasks = str(ROOT / "unlearn/toy/tasks")
    return load_suite({"forget": ["toy_forget_bio"]}, {"default": []}, include_path=tasks, subset=60)
