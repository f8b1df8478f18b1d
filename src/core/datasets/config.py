"""Settings of a dataset: `conf/dataset/*.yaml`."""

from __future__ import annotations

from src.core.config import config_group, setting
from src.core.datasets.times import UNITS, parse_time

FORMAT_VERSION = 3  # of a prepared folder; enters the fingerprint
READERS = (
    *("demo", "csv", "movielens_100k", "movielens_1m", "movielens_10m", "movielens_20m", "movielens_32m"),
    *("movietweetings", "lastfm_hetrec", "ilora", "steam", "amazon_2014", "amazon_2018"),
)
SPLITS = ("global_time", "leave_one_out", "user_split", "official")
MISSING_TITLES = ("error", "drop", "id")
DUPLICATE_TITLES = ("keep", "drop", "merge")
REPEATS = ("keep", "first", "last", "consecutive")


@config_group
class DemoConfig:
    """The generated dataset (`reader: demo`)."""

    users: int = setting("number of users", ge=2)
    items: int = setting("number of items", ge=30)
    groups: int = setting("latent item groups, visible in the titles' words", ge=2, le=16)
    interactions_per_user: int = setting("mean length of a user's log", ge=4)
    zipf: float = setting("exponent of the popularity within a group; 0: all alike", ge=0.0)
    late_share: float = setting("share of the items released late in the year", ge=0.0, lt=1.0)
    mood_weight: float = setting("how much likelier an item of the user's mood is", gt=0.0)
    names: int = setting(
        "rare invented names per group in the titles; 0: titles of a few frequent words", ge=0, le=100
    )
    named_share: float = setting(
        "share of the titles that show a frequent word of their group beside the name",
        ge=0.0,
        le=1.0,
        when={"names": True},
    )
    seed: int = setting("seed of the generator", ge=0)


@config_group
class CsvConfig:
    """The user's own files (`reader: csv`): .csv, .tsv, .parquet or .jsonl, plain or packed."""

    interactions: str = setting("file of the log in raw_dir; or a folder or pattern of its parts")
    items: str = setting("file of the items in raw_dir; or a folder or pattern of its parts")
    user: str = setting("column of the log: user id")
    item: str = setting("column of the log: item id")
    timestamp: str | None = setting("column of the log: number or ISO 8601; null: the file's order counts")
    time_unit: str | None = setting("unit of numbers; null: told by their size", choices=tuple(UNITS))
    rating: str | None = setting("column of the log: rating; null: none")
    item_id: str = setting("column of the items: item id")
    title: str = setting("column of the items: title")
    separator: str | None = setting("between fields of text files; null: , in .csv and tab in .tsv")
    quoting: bool = setting("fields may stand in double quotes; false: quotes are part of the text")
    encoding: str = setting("encoding of text files")

    @property
    def sep(self) -> str:
        """One character; "" where the file's ending says it."""
        return {None: "", "tab": "\t", "\\t": "\t"}.get(self.separator, self.separator or "")

    @property
    def codec(self) -> str:
        plain = self.encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
        return "utf8" if plain else self.encoding

    def problems(self) -> list[str]:
        out = []
        try:
            "".encode(self.encoding)
        except (LookupError, UnicodeError):
            out.append(
                f"encoding: found {self.encoding!r}, expected one that Python knows, e.g. utf-8, latin-1"
            )
        if len(self.sep) > 1 or self.sep in tuple('"\r\n') or (self.separator is not None and not self.sep):
            out.append(f"separator: found {self.separator!r}, expected one character, e.g. ';', or tab")
        for roles in (("user", "item", "timestamp", "rating"), ("item_id", "title")):
            seen: dict[str, str] = {}
            for role in roles:
                name = getattr(self, role)
                if name is not None and (first := seen.setdefault(name.strip().casefold(), role)) != role:
                    out.append(f"{role}: found {name!r}, the column of {first}; expected a column of its own")
        return out


@config_group
class AmazonConfig:
    """Which part of the reviews (`reader: amazon_2014`, `amazon_2018`)."""

    category: str = setting("category as in the files' names, e.g. Video_Games")


@config_group
class IloraConfig:
    """Split files as iLoRA and DLLM2Rec publish them (`reader: ilora`)."""

    strip_target: bool = setting("drop a target that stands as the newest history item, instead of stopping")
    allow_repeats: bool = setting(
        "targets may repeat the newest history item, and rows may repeat (purchases)"
    )

    def problems(self) -> list[str]:
        if self.strip_target and self.allow_repeats:
            return ["strip_target: found true with allow_repeats=true, expected one of them"]
        return []


@config_group
class DatasetConfig:
    """`conf/dataset/*.yaml`: where a log comes from and how samples are cut from it."""

    name: str = setting("name in paths and tables", file_name=True)
    reader: str = setting("raw format", choices=READERS)
    raw_dir: str | None = setting("folder of the raw files; null: data/raw/<name>", in_fingerprint=False)
    download: bool = setting("fetch the raw files when they are missing", in_fingerprint=False)
    bad_times: str = setting("times before 1970: error or drop", choices=("error", "drop"))
    missing_titles: str = setting("items without a title", choices=MISSING_TITLES)
    max_untitled: float = setting(
        "largest share of interactions that missing_titles=drop may remove",
        ge=0.0,
        le=1.0,
        in_fingerprint=False,
    )
    duplicate_titles: str = setting("items with another item's title", choices=DUPLICATE_TITLES)
    min_rating: float | None = setting("keep interactions rated at least so; null: every rating")
    repeats: str = setting("interactions of a user with an item it had before", choices=REPEATS)
    k_core_users: int | None = setting("fewest interactions of a user, with k_core_items until stable", ge=1)
    k_core_items: int | None = setting("fewest interactions of an item", ge=1)
    min_history: int = setting("fewest earlier interactions of a sample", ge=1)
    short_users: str = setting(
        "users with no sample by min_history: drop, or keep their last row", choices=("drop", "last")
    )
    max_history: int = setting("history items a model sees (the newest)", ge=1)
    min_target_rating: float | None = setting(
        "fewest stars of a target (history keeps all); null: every rating"
    )
    split: str = setting("which samples are train, valid, test", choices=SPLITS)
    split_ratio: tuple[float, ...] = setting("shares of train, valid, test", ge=0.0, le=1.0)
    split_times: tuple[str, ...] | None = setting("first times of valid and test, instead of split_ratio")
    split_seed: int = setting("seed of user_split", ge=0)
    demo: DemoConfig | None = setting("settings of the generated dataset")
    csv: CsvConfig | None = setting("the user's own files")
    amazon: AmazonConfig | None = setting("part of the Amazon reviews")
    ilora: IloraConfig | None = setting("split files in iLoRA's form")

    def problems(self) -> list[str]:
        out = []
        if len(self.split_ratio) != 3 or abs(sum(self.split_ratio) - 1.0) > 1e-9:
            out.append(f"split_ratio: found {list(self.split_ratio)}, expected three shares that sum to 1")
        group = {"amazon_2014": "amazon", "amazon_2018": "amazon"}.get(self.reader, self.reader)
        for name in ("demo", "csv", "amazon", "ilora"):
            if (getattr(self, name) is not None) != (name == group):
                found = "null" if name == group else "settings"
                out.append(f"{name}: found {found} with reader={self.reader}")
        if (self.split == "official") != (self.reader == "ilora"):
            out.append(f"split: found {self.split} with reader={self.reader}; official is for split files")
        if self.csv is not None and self.csv.timestamp is None and self.split == "global_time":
            out.append(
                "split: found global_time with csv.timestamp=null, expected leave_one_out or user_split"
            )
        if self.split == "official":
            out.extend(
                f"{key}: found {getattr(self, key)!r}, but split files are taken as they are"
                for key, neutral in _FILTERS_OFF.items()
                if getattr(self, key) != neutral
            )
        if self.split_times is not None:
            out.extend(self._time_problems())
        return out

    def _time_problems(self) -> list[str]:
        if self.split != "global_time":
            return [f"split_times: found with split={self.split}, expected split=global_time"]
        try:
            times = [parse_time(t) for t in self.split_times or ()]
        except ValueError as e:
            return [f"split_times: {e}"]
        if len(times) != 2 or times[0] >= times[1]:
            return [f"split_times: found {list(self.split_times or ())}, expected two ascending times"]
        return []


_FILTERS_OFF = {
    "min_rating": None,
    "min_target_rating": None,
    "repeats": "keep",
    "k_core_users": None,
    "k_core_items": None,
    "duplicate_titles": "keep",
    "short_users": "drop",
}
