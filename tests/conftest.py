"""What every test starts from: the same seeds, an empty parameter store, few threads."""

import os
from collections.abc import Iterator
from pathlib import Path

# how many threads suit a run depends on how busy the machine is, and changes bits
os.environ["OMP_NUM_THREADS"] = "1"

import pyro
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too (minutes each)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # the tests' tensors are small: further threads would only wait for each other, on a busy machine for long
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded_and_without_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch, numpy and random; fail a test that leaves parameters in Pyro's global store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    leaked = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    if leaked and not request.node.get_closest_marker("global_store"):
        pytest.fail(f"parameters were left in Pyro's global store: {leaked}")


@pytest.fixture(scope="session")
def ppgen_data() -> Path:
    """The folder of real data sets; without PPGEN_DATA the test is skipped."""
    if "PPGEN_DATA" not in os.environ:
        pytest.skip("needs real data: set PPGEN_DATA to its folder")
    return Path(os.environ["PPGEN_DATA"])
