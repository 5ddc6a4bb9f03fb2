"""Series from tables: what is read, what is missing, and what is refused with its place."""

from __future__ import annotations

import numpy as np
import pytest

from anyformer.hub.processors import SeriesProcessor
from anyformer.hub.processors.series import CALENDAR, calendar_of
from anyformer.media.series import Step, read_series


def table(tmp_path, text, name="a.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


HOURS = "time,target,warm\n2024-01-01 00:00,1,0\n2024-01-01 01:00,,1\n2024-01-01 03:00,4,0\n2024-01-01 04:00,,1\n"


def test_a_gap_is_missing_and_rows_behind_the_last_value_are_the_future(tmp_path):
    (one,) = read_series(table(tmp_path, HOURS))
    np.testing.assert_array_equal(one.values[:, 0], [1, np.nan, np.nan, 4])
    assert one.gaps == 1 and one.step == Step(seconds=3600) and len(one.times) == 5
    assert str(one.times[2]) == "2024-01-01T02:00:00"
    with pytest.raises(ValueError, match="'warm', known ahead, is missing at 2024-01-01T02:00:00"):
        read_series(table(tmp_path, HOURS), {"known": "warm"})
    whole = HOURS.replace("2024-01-01 03:00", "2024-01-01 02:00,,1\n2024-01-01 03:00")
    (one,) = read_series(table(tmp_path, whole), {"known": "warm"})
    assert len(one) == 4 and one.known.shape == (5, 1)


def test_months_and_several_series_in_one_table(tmp_path):
    text = "date,shop,sold\n2023-11,b,3\n2023-11,a,1\n2023-12,b,\n2023-12,a,2\n2024-01,b,5\n2024-03,a,7\n"
    one, two = read_series(table(tmp_path, text), {"time": "date", "series": "shop", "target": "sold"})
    assert (one.name, two.name) == ("a", "b") and one.step == Step(months=1)
    np.testing.assert_array_equal(one.values[:, 0], [1, 2, np.nan, np.nan, 7])
    assert [str(t)[:10] for t in one.step.after(one.times[-1], 2)] == ["2024-04-01", "2024-05-01"]
    assert Step(months=1).season() == 12 and Step(seconds=1800).season() == 48 and Step(seconds=86_400).season() == 7


def test_parquet_has_the_same_series(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    times = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[s]")
    pq.write_table(pyarrow.table({"time": times, "target": [1.0, None, 3.0]}), tmp_path / "a.parquet")
    (one,) = read_series(tmp_path / "a.parquet")
    (two,) = read_series(table(tmp_path, "time,target\n2024-01-01,1\n2024-01-02,NA\n2024-01-03,3\n"))
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.times, two.times)


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ("2024-01-01,1\n2024-01-03,2\n2024-01-02,3\n", {}, "row 3: the time 2024-01-02.* sort the rows by time"),
        ("2024-01-01,1\n2024-01-02,2\n2024-01-02,3\n", {}, "row 3: the time 2024-01-02T00:00:00 comes twice"),
        ("2024-01-01,1\n2024-01-02,2\n2024-01-03 12:00,3\n", {}, "row 3: .* lies between two steps of a day"),
        ("2024-01-01,\n2024-01-02,NaN\n", {}, "every value of 'target' is missing"),
        ("2024-01-01,1\n", {}, "has one row"),
        ("2024-01-01,x\n2024-01-02,1\n", {}, "row 1: 'target' is 'x', which is no number"),
        ("2024-01-01,inf\n2024-01-02,1\n", {}, "infinite"),
        ("yesterday,1\n2024-01-02,1\n", {}, "row 1: 'time' is 'yesterday', which is no time"),
        ("2024-01-01T00:00:00+02:00,1\n2024-01-02,1\n", {}, "one time zone"),
        ("2024-01-01,1,2\n", {}, "row 1 has 3 cells, and the first line 2 names"),
        ("2024-01-01,1\n2024-01-02,2\n", {"target": "sold"}, "no column 'sold'; it has 'time', 'target'"),
        ("2024-01-01,1\n2024-01-02,2\n", {"value": "target"}, "no name 'value'; series have"),
        ("2024-01-01,1\n2024-01-02,2\n", {"known": "target"}, "'target' is a target, whose values are not known ahead"),
        ("", {}, "holds no rows"),
    ],
)  # fmt: skip
def test_tables_that_are_no_series_are_refused_with_the_place(rows, fields, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_series(table(tmp_path, "time,target\n" + rows), fields)


def test_a_column_that_tells_the_future_is_refused(tmp_path):
    text = "time,target,copy\n2024-01-01,1,1\n2024-01-02,2,2\n2024-01-03,5,5\n"
    with pytest.raises(ValueError, match=r"'copy' is equal to the target 'target' at every step.* tell the future"):
        read_series(table(tmp_path, text), {"known": "copy"})


def test_a_table_of_another_kind_or_without_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which column is the target"):
        read_series(table(tmp_path, "time,demand\n2024-01-01,1\n"))
    with pytest.raises(ValueError, match=r"\.csv, \.tsv or \.parquet"):
        read_series(table(tmp_path, "x", "a.txt"))
    with pytest.raises(FileNotFoundError):
        read_series(tmp_path / "none.csv")


def test_the_calendar_goes_from_minus_a_half_to_a_half():
    first, last = (np.datetime64(f"{year}-01-01T00:00:00") for year in (2024, 2025))
    times = np.arange(first, last, np.timedelta64(1800, "s"))
    for name, (count, of) in CALENDAR.items():
        numbers = of(times)
        assert numbers.min() == 0 and numbers.max() == (count - 1 if name != "minute" else 30), name
    monday = np.array(["2024-01-01T05:30:00"], "datetime64[s]")
    assert [int(of(monday)[0]) for _, of in CALENDAR.values()] == [30, 5, 0, 0, 0, 0]
    assert calendar_of(Step(months=3)) == ("month",) and "minute" in calendar_of(Step(seconds=60))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calendar": ("noon",)}, "noon"),
        ({"seconds": 0}, "a step of seconds or of months"),
        ({"months": 1}, "a step of seconds or of months"),
        ({"targets": ()}, "at least one target"),
    ],
)
def test_a_processor_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SeriesProcessor(**{"targets": ("a",), "seconds": 60, **options})
