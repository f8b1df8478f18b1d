"""Raw text tables: what is read exactly, and what is refused with file and line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from src.core.datasets.columns import Id, require_files
from src.core.datasets.raw_log import encode, title_series
from src.core.datasets.tables import read_parquet
from src.core.datasets.text_table import Form, read_lines, read_table
from src.core.datasets.times import ticks
from src.core.errors import UserError

LOG = {"user": int, "item": int, "rating": float, "time": int}


def write(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        b"1\t10\t3\t100\n2\t11\t4.5\t200\n",
        b"1\t10\t3\t100\r\n2\t11\t4.5\t200\r\n",
        b"\xef\xbb\xbf1\t10\t3\t100\n2\t11\t4.5\t200",
    ],
    ids=["plain", "crlf", "bom, no last newline"],
)
def test_reads_columns_exactly(tmp_path, data):
    table = read_table(write(tmp_path / "log", data), LOG, Form("\t"))
    assert table.to_pydict() == {"user": [1, 2], "item": [10, 11], "rating": [3.0, 4.5], "time": [100, 200]}


def test_long_separator_and_unused_columns(tmp_path):
    path = write(tmp_path / "m", "7::Ça: a::Drama\n8::B::x|y\n".encode())
    assert read_table(path, {"item": int, "title": str}, Form("::", width=3)).to_pydict() == {
        "item": [7, 8],
        "title": ["Ça: a", "B"],
    }


def test_latin_1(tmp_path):
    path = write(tmp_path / "m", "1|Fantômas|x\n".encode("latin-1"))
    form = Form("|", encoding="latin-1", width=3)
    assert read_table(path, {"i": int, "t": str}, form)["t"].to_pylist() == ["Fantômas"]
    with pytest.raises(UserError, match=r"m line 1: byte 0xf4 is not utf8"):
        read_table(path, {"i": int, "t": str}, Form("|", width=3))


def test_quotes_separators_and_line_breaks_in_titles(tmp_path):
    path = write(tmp_path / "i.csv", b'title,item\n"A, ""B""\nC",1\nNA,2\n,3\n')
    table = read_table(path, {"item": Id, "title": str}, Form(header=True, quoted=True))
    assert table["title"].to_pylist() == ['A, "B"\nC', "NA", ""]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\t10\t3\t100\n2\t11\t4\n", "log line 2: 3 columns"),
        (b"1\t10\t3\t100\n2\t11\t4\t5\t6\n", "log line 2: 5 columns"),
        (b"1\t10\t3\t100\n2\tx\t4\t5\n", "log line 2: item is 'x'"),
        (b"1\t10\t3\t100\n2\t1.5\t4\t5\n", "log line 2: item is '1.5'"),
        (b"1\t10\t\t100\n", "log line 1: rating is ''"),
        (b"1\t10\tnan\t100\n", "log line 1: rating is 'nan'"),
        (b"1\t10\tinf\t100\n", "log line 1: rating is 'inf'"),
        (b"1\t10\t3\t99999999999999999999\n", "log line 1: time is '99999999999999999999'"),
        (b"\n\n", "log has no rows"),
    ],
)
def test_refuses_with_the_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "log", data), LOG, Form("\t"))


def test_header_without_the_column(tmp_path):
    path = write(tmp_path / "log.csv", b"userId,movieId\n1,2\n")
    with pytest.raises(UserError, match="columns userId, movieId; expected a column rating"):
        read_table(path, {"userId": int, "rating": float}, Form(header=True))


def test_quotes_where_the_format_has_none(tmp_path):
    path = write(tmp_path / "log.csv", b'"userId",movieId\n1,2\n')
    with pytest.raises(UserError, match='columns "userId", movieId; expected a column userId'):
        read_table(path, {"userId": int}, Form(header=True))


def test_unclosed_quote(tmp_path):
    path = write(tmp_path / "i.csv", b'item,title\n1,"abc\n2,def\n')
    with pytest.raises(UserError, match="i.csv"):
        read_table(path, {"item": Id, "title": str}, Form(header=True, quoted=True))


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="a.dat is missing"):
        require_files(tmp_path, ["a.dat"])
    (tmp_path / "a.dat").touch()
    with pytest.raises(UserError, match="a.dat is empty"):
        require_files(tmp_path, ["a.dat"])


def test_read_lines_of_differing_width(tmp_path):
    path = write(tmp_path / "artists.dat", "id\tname\turl\n1\tBjörk\turl\tpicture\n2\tCan\n".encode())
    assert [row[:2] for row in read_lines(path, "\t", least=2, header=True)] == [["1", "Björk"], ["2", "Can"]]
    with pytest.raises(UserError, match="artists.dat line 3: 2 columns"):
        read_lines(path, "\t", least=3)


def test_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pa.parquet.write_table(
        pa.table({"u": ["a", "b"], "t": pa.array([1, 2], pa.int32()), "r": [1.0, None]}), path
    )
    assert read_parquet(path, {"t": int, "u": Id})["t"].to_pylist() == [1, 2]
    with pytest.raises(UserError, match="log.parquet row 2: r is null"):
        read_parquet(path, {"r": float})
    with pytest.raises(UserError, match="expected a column x"):
        read_parquet(path, {"x": int})
    with pytest.raises(UserError, match="column u"):
        read_parquet(path, {"u": int})
    with pytest.raises(UserError, match="cannot be read"):
        read_parquet(write(tmp_path / "no.parquet", b"PAR1"), {"x": int})


def test_encode_numbers_ids_in_numeric_order():
    column = pa.chunked_array(
        [pa.array(["10", "9"]).dictionary_encode(), pa.array(["-1", "9"]).dictionary_encode()]
    )
    ids = encode(column)
    assert ids.values.tolist() == [-1, 9, 10] and ids.codes.tolist() == [2, 1, 0, 1]


def test_encode_keeps_text_ids_apart():
    ids = encode(pa.chunked_array([pa.array(["7", "07", "10"]).dictionary_encode()]))
    assert ids.values.tolist() == ["07", "10", "7"] and ids.codes.tolist() == [2, 0, 1]


@pytest.mark.parametrize("scale", [1, 10**15], ids=["dense", "sparse"])
def test_encode_integers(scale):
    ids = encode(np.array([5, -3, 5, 9]) * scale)
    assert ids.values.tolist() == [-3 * scale, 5 * scale, 9 * scale] and ids.codes.tolist() == [1, 0, 1, 2]


def test_units_of_time():
    at = np.array([881250949, 1500000000])
    for unit in (1, 1000, 10**6, 10**9):
        assert ticks(at * unit, "row {}".format)[0].tolist() == (at * unit).tolist()
        assert ticks(at * unit, "row {}".format)[1] == unit
    with pytest.raises(UserError, match="row 2: time 1500000000000 is in another unit"):
        ticks(np.array([881250949, 1500000000, 1500000000000]), "row {}".format)


def test_titles_first_row_counts(tmp_path, caplog):
    caplog.set_level("INFO")
    titles = title_series([1, 2, 1], ["A  b ", None, "C"], tmp_path / "items")
    assert titles.to_dict() == {"1": "A b", "2": ""}
    assert "items: 1 rows repeat an item" in caplog.text
