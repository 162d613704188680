"""What a person reads about the data."""

import json

from mlxfn.data.report import BucketUse, DataReport, ShapeReport, quantiles, summary
from tests.data.helpers import rows_of

REPORT = DataReport(
    "train", 1000, 900, 40, 60, 40, 90_000, 30_000, (2, 80, 200, 400, 511), ("a:1", "a:7")
)
SHAPES = ShapeReport(120, 8, (BucketUse(64, 64, 100), BucketUse(8, 512, 20)), 0.125, 900, 850)


def test_the_summary_names_every_number():
    """What was left out of training is said, with why and where."""
    text = summary(REPORT, SHAPES)
    for part in (
        "900 of 1,000 kept",
        "40 truncated",
        "60 over max_seq_length",
        "40 without a target",
        "90,000, of which 30,000 are learned (33%)",
        "2 to 511, median 80",
        "a:1, a:7, ...",
        "900 rows in 850 packs",
        "120 of 8 packs",
        "64 × 64 (100), 8 × 512 (20)",
        "12.5% padding",
    ):
        assert part in text, part


def test_reports_are_json():
    """They go into the log and the final report."""
    assert json.loads(json.dumps(REPORT.to_dict()))["dropped_overlong"] == 60
    assert json.loads(json.dumps(SHAPES.to_dict()))["buckets"][1]["length"] == 512


def test_quantiles_are_lengths_that_occur():
    """An interpolated 12.5 tokens is no row."""
    assert quantiles(rows_of([3, 5, 9, 30]).lengths) == (3, 9, 30, 30, 30)
    assert quantiles(rows_of([]).lengths) == (0, 0, 0, 0, 0)
