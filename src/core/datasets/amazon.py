"""Amazon reviews, 5-core, of 2014 and 2018, with the titles of the products' metadata.

2014: R. He, J. McAuley: Ups and Downs: Modeling the Visual Evolution of Fashion Trends with
One-Class Collaborative Filtering. WWW 2016. 2018: J. Ni, J. Li, J. McAuley: Justifying
Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects. EMNLP 2019. No licence is
stated; research use with citation.
"""

from __future__ import annotations

import ast
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.datasets import RawLog, encode, seconds, title_series
from src.core.datasets.jsonl import existing, read_json, read_titles
from src.core.datasets.tables import Id, require_files

if TYPE_CHECKING:
    from src.core.datasets.config import DatasetConfig

_MARKUP = ("<span", "<div", "var aPageStart")  # pages that the crawl of 2018 took for a title


def file_names(config: DatasetConfig) -> tuple[str, str]:
    """Reviews and metadata as the sources name them."""
    assert config.amazon is not None  # DatasetConfig.problems
    category = config.amazon.category
    prefix = "reviews_" if config.reader == "amazon_2014" else ""
    return f"{prefix}{category}_5.json.gz", f"meta_{category}.json.gz"


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    return require_files(raw_dir, [existing(raw_dir, name) for name in file_names(config)])


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    path, items_path = files(raw_dir, config)
    log = read_json(path, {"reviewerID": Id, "asin": Id, "overall": float, "unixReviewTime": int})
    if config.reader == "amazon_2014":
        ids, titles = read_titles(items_path, ast.literal_eval, "a Python literal")
    else:
        ids, titles = read_titles(items_path, json.loads, "JSON")
    return RawLog(
        users=encode(log.column("reviewerID")),
        items=encode(log.column("asin")),
        timestamps=seconds(log.column("unixReviewTime").to_numpy(), path),
        ratings=log.column("overall").to_numpy().astype(np.float32),
        titles=title_series(ids, [clean_title(t) for t in titles], items_path),
        path=path,
    )


def clean_title(title: str | None) -> str | None:
    """Decode HTML entities; no title where the page's code stands in its place, or a single character (BIGRec)."""
    if title is None or len(title) <= 1 or any(mark in title for mark in _MARKUP):
        return None
    return html.unescape(title)
