"""The fixtures of conftest.py catch what they are there to catch: a small suite is run inside a test."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\naddopts = --strict-markers\nmarkers =\n  slow\n  global_store\n")
    return pytester


@pytest.mark.global_store
def test_a_leak_into_the_global_store_fails_unless_marked(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pyro, pytest, torch
        def test_leaks():
            pyro.param("leaked", torch.tensor(1.0))
        def test_after_it_the_store_is_empty():
            assert not list(pyro.get_param_store())
        @pytest.mark.global_store
        def test_may_leak():
            pyro.param("allowed", torch.tensor(1.0))
    """)
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*left in Pyro's global store: ?'leaked'?*"])


def test_every_test_draws_the_same_numbers(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import random, numpy, pytest, torch
        seen = set()
        @pytest.mark.parametrize("repeat", range(3))
        def test_draw(repeat):
            seen.add((random.random(), numpy.random.rand(), torch.rand(()).item()))
            assert len(seen) == 1
    """)
    suite.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


@pytest.mark.parametrize(("options", "outcomes"), [([], {"skipped": 1}), (["--slow"], {"passed": 1})])
def test_slow_tests_wait_for_the_option(suite: pytest.Pytester, options: list[str], outcomes: dict[str, int]) -> None:
    suite.makepyfile("""
        import pytest
        @pytest.mark.slow
        def test_slow():
            pass
    """)
    suite.runpytest_inprocess("-p", "no:cacheprovider", *options).assert_outcomes(**outcomes)
