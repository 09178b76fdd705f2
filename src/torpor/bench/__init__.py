"""What every benchmark of the project uses: samples in, a table and a JSON file out.

A benchmark makes one `Report`, gives it samples or single values case by case, and ends with
`Report.finish`, whose answer is its exit status.
"""

from torpor.bench.report import Bar, Report, Row, WrongAnswerError, refuse_debug_build

__all__ = ["Bar", "Report", "Row", "WrongAnswerError", "refuse_debug_build"]
