"""Where each source lies, under which terms, and how a download is known to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from src.core.datasets.config import DatasetConfig

_GIB = 2**30


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        url: https address.
        members: for a zip, archive member -> file name in raw_dir; empty: the file itself is kept.
        checksum: "md5:..." or "sha256:..." that the source (or many users of it) publishes; None:
            the hash is recorded on first use and must stay the same.
        lines: known number of lines of files in raw_dir (gzip is read through).
        max_bytes: largest size of the download and of everything unpacked from it.
    """

    url: str
    members: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    max_bytes: int = 4 * _GIB

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def files(self) -> list[str]:
        """File names in raw_dir."""
        return list(self.members.values()) or [self.name]


@dataclass(frozen=True)
class Source:
    terms: str
    page: str
    downloads: tuple[Download, ...]


def _movielens(name: str, folder: str, log: str, items: str, md5: str, rows: int) -> Source:
    return Source(
        terms="GroupLens: research use, acknowledge, no redistribution",
        page="https://grouplens.org/datasets/movielens/",
        downloads=(
            Download(
                f"https://files.grouplens.org/datasets/movielens/{name}.zip",
                {f"{folder}/{log}": log, f"{folder}/{items}": items},
                f"md5:{md5}",
                {log: rows},
            ),
        ),
    )


_TWEETS = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/snapshots/100K"
_STEAM = "https://cseweb.ucsd.edu/~wckang"
_AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"

_SOURCES = {
    "movielens_100k": _movielens(
        "ml-100k", "ml-100k", "u.data", "u.item", "0e33842e24a9c977be4e0107933c0723", 100_000
    ),
    "movielens_1m": _movielens(
        "ml-1m", "ml-1m", "ratings.dat", "movies.dat", "c4d9eecfca2ab87c1945afe126590906", 1_000_209
    ),
    "movielens_10m": _movielens(
        "ml-10m", "ml-10M100K", "ratings.dat", "movies.dat", "ce571fd55effeba0271552578f2648bd", 10_000_054
    ),
    "movielens_20m": _movielens(
        "ml-20m", "ml-20m", "ratings.csv", "movies.csv", "cd245b17a1ae2cc31bb14903e1204af3", 20_000_264
    ),
    "movielens_32m": _movielens(
        "ml-32m", "ml-32m", "ratings.csv", "movies.csv", "d472be332d4daa821edc399621853b57", 32_000_205
    ),
    "movietweetings": Source(
        "MIT (c) 2013 Simon Dooms",
        "https://github.com/sidooms/MovieTweetings",
        (
            Download(f"{_TWEETS}/ratings.dat", lines={"ratings.dat": 100_000}),
            Download(f"{_TWEETS}/movies.dat"),
        ),
    ),
    "lastfm_hetrec": Source(
        "non-commercial use (Last.fm terms)",
        "https://grouplens.org/datasets/hetrec-2011/",
        (
            Download(
                "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
                {name: name for name in ("user_taggedartists-timestamps.dat", "artists.dat")},
                lines={"user_taggedartists-timestamps.dat": 186_480, "artists.dat": 17_633},
            ),
        ),
    ),
    "steam": Source(
        "none stated; research use with citation",
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        (
            Download(f"{_STEAM}/steam_reviews.json.gz", lines={"steam_reviews.json.gz": 7_793_069}),
            Download(f"{_STEAM}/steam_games.json.gz", lines={"steam_games.json.gz": 32_135}),
        ),
    ),
}

# Reviews of the 5-core files, from the sources' pages.
_REVIEWS = {
    ("amazon_2014", "Video_Games"): 231_780,
    ("amazon_2014", "Toys_and_Games"): 167_597,
    ("amazon_2014", "Beauty"): 198_502,
    ("amazon_2014", "Sports_and_Outdoors"): 296_337,
    ("amazon_2018", "Video_Games"): 497_577,
    ("amazon_2018", "Toys_and_Games"): 1_828_971,
    ("amazon_2018", "All_Beauty"): 5_269,
    ("amazon_2018", "Sports_and_Outdoors"): 2_839_940,
}


def amazon_files(reader: str, category: str) -> tuple[str, str]:
    """Reviews and metadata of a category as the sources name them."""
    prefix = "reviews_" if reader == "amazon_2014" else ""
    return f"{prefix}{category}_5.json.gz", f"meta_{category}.json.gz"


def source(config: DatasetConfig) -> Source | None:
    """The source of a reader; None where the files are the user's own."""
    if config.amazon is None:
        return _SOURCES.get(config.reader)
    reviews, items = amazon_files(config.reader, config.amazon.category)
    folders = (_AMAZON_2014, _AMAZON_2014)
    if config.reader == "amazon_2018":
        folders = (f"{_AMAZON_2018}/categoryFilesSmall", f"{_AMAZON_2018}/metaFiles2")
    known = _REVIEWS.get((config.reader, config.amazon.category))
    return Source(
        "none stated; research use with citation",
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html",
        (
            Download(f"{folders[0]}/{reviews}", lines={reviews: known} if known else {}),
            Download(f"{folders[1]}/{items}"),
        ),
    )
