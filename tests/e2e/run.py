#!/usr/bin/env python3
"""Runs the end-to-end tests: tests/e2e/run.py [--program build/tessera] [-k WORDS].

The last line is "N passed, N failed[, N skipped]".
"""
import argparse
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import command_line  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=command_line.PROGRAM)
    parser.add_argument("-k", action="append", default=[], help="only tests whose name has this")
    options = parser.parse_args()
    command_line.PROGRAM = os.path.abspath(options.program)

    loader = unittest.TestLoader()
    if options.k:
        loader.testNamePatterns = [f"*{k}*" for k in options.k]
    suite = loader.discover(os.path.dirname(os.path.abspath(__file__)), pattern="*_test.py")
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=0, descriptions=False).run(suite)
    for test, reason in result.skipped:
        print(f"skipped {test.id()}: {reason}")
    # A subtest counts as the test it is part of.
    failed = len({getattr(t, "test_case", t).id() for t, _ in result.failures + result.errors})
    passed = result.testsRun - failed - len(result.skipped)
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    print(f"{passed} passed, {failed} failed{skipped}")
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
