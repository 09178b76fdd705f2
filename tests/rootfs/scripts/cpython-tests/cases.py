"""Runs one module of CPython's regression tests, and tells the outcome of each case as it ends.

`cases.py MODULE` reads a JSON object from standard input: `done`, the cases that are not to be run
again, and `only`, the cases to run (null for all). It writes a JSON list for each step of a case to
standard output, [case, outcome] or [case, outcome, reason]: `started`, then `passed`, `failed` or
`skipped`; a last line [null, "finished"] says that the module has been through.
What the tests themselves print goes to standard error.
"""

import importlib
import json
import os
import sys
import traceback
import unittest


# Of what regression tests ask for before they run: loopback is network enough for these.
RESOURCES = {"test_socketserver": ["network"]}


def report_descriptor():
    """Standard output, out of the tests' way; theirs becomes standard error."""
    report = os.dup(1)
    high = 200
    os.dup2(report, high, inheritable=False)
    os.close(report)
    os.dup2(2, 1)
    return high


class Reporter(unittest.TestResult):
    def __init__(self, report):
        super().__init__()
        self.report = report
        self.reasons = {}

    def tell(self, *words):
        os.write(self.report, json.dumps(words).encode() + b"\n")

    def startTest(self, test):
        super().startTest(test)
        self.reasons[test.id()] = []
        self.tell(test.id(), "started")

    def stopTest(self, test):
        super().stopTest(test)
        reasons = self.reasons.pop(test.id())
        failed = [reason for outcome, reason in reasons if outcome == "failed"]
        if failed:
            self.tell(test.id(), "failed", failed[0])
        elif reasons:
            self.tell(test.id(), "skipped", reasons[0][1])
        else:
            self.tell(test.id(), "passed")

    def note(self, test, outcome, reason):
        # A failing setUpClass or setUpModule is told under a name of its own.
        if test.id() in self.reasons:
            self.reasons[test.id()].append((outcome, reason))
        elif outcome == "failed":
            self.tell(test.id(), outcome, reason)

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, "failed", explain(err))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "failed", explain(err))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "failed", explain(err))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "skipped", reason)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "failed", "unexpected success")


def explain(err):
    text = "".join(traceback.format_exception(*err))
    print(text, file=sys.stderr, flush=True)
    return text.strip().splitlines()[-1][:300]


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def main():
    module_name = "test." + sys.argv[1]
    wanted = json.load(sys.stdin)
    sys.stdin.close()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.stdin = open(0)  # noqa: SIM115 -- for as long as the process lives
    report = report_descriptor()

    from test import support
    from test.support import os_helper

    support.use_resources = RESOURCES.get(sys.argv[1], [])
    support.verbose = 0
    with os_helper.temp_cwd("cases"):
        loader = unittest.TestLoader()
        reporter = Reporter(report)
        try:
            module = importlib.import_module(module_name)
        except (unittest.SkipTest, ModuleNotFoundError) as error:
            reporter.tell(module_name, "skipped", str(error))
            reporter.tell(None, "finished")
            return
        if hasattr(module, "load_tests") or not module.__file__.endswith("__init__.py"):
            suite = loader.loadTestsFromModule(module)
        else:
            suite = loader.loadTestsFromName(module_name)
        done = set(wanted["done"])
        only = None if wanted["only"] is None else set(wanted["only"])
        cases = []
        for test in flatten(suite):
            if test.id() not in done and (only is None or test.id() in only):
                cases.append(test)
        unittest.TestSuite(cases).run(reporter)
        reporter.tell(None, "finished")
        reap = getattr(support, "reap_children", None)
        if reap:
            reap()
    # Threads that a failed test has left are not waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
