"""Each source in its true raw format, in small; and the real files where they are at hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from src.core.data_utils import load_dataset
from src.core.datasets.readers import reader
from src.core.datasets.tabular import clean_title
from src.core.errors import UserError


def put(folder, **files):
    """Write files; a name's double underscore is a dot, .gz is packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        path = folder / name.replace("__", ".")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder


def read(name, folder, dataset_config, *overrides):
    config = dataset_config(name, f"dataset.raw_dir={folder}", "dataset.download=false", *overrides)
    return reader(config.reader).read(folder, config)


def rows(log):
    """(user, item, seconds, rating) of a log, by raw ids."""
    ratings = [None] * len(log.timestamps) if log.ratings is None else log.ratings.tolist()
    users, items = log.users.values[log.users.codes].tolist(), log.items.values[log.items.codes].tolist()
    return list(zip(users, items, (log.timestamps // log.resolution).tolist(), ratings, strict=True))


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
        ("American in Paris, An (1951)", "An American in Paris (1951)"),
        ("Beautiful Thing (1996)", "Beautiful Thing (1996)"),
        ("A, B, The C (1990)", "A, B, The C (1990)"),
        ("Bug's Life, A", "A Bug's Life"),
        (" Land Before Time III: The Time of the Great Giving (1995) (V) ", None),
        ("unknown", "unknown"),
    ],
)
def test_only_a_trailing_article_moves(title, clean):
    assert clean_title(title) == (title.strip() if clean is None else clean)


def test_movielens_1m(tmp_path, dataset_config):
    put(
        tmp_path,
        ratings__dat="1::1193::5::978300760\n2::661::3::978302109\n",
        movies__dat="1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n661::Città, La (1998)::Drama\n".encode(
            "latin-1"
        ),
    )
    log = read("movielens_1m", tmp_path, dataset_config)
    assert rows(log) == [(1, 1193, 978300760, 5.0), (2, 661, 978302109, 3.0)]
    assert log.titles["661"] == "Città, La (1998)"


def test_movielens_10m_is_utf8_with_half_stars(tmp_path, dataset_config):
    put(
        tmp_path,
        ratings__dat="1::122::4.5::838985046\n",
        movies__dat="122::Città, The (1992)::Comedy|Romance\n",
    )
    log = read("movielens_dllm2rec", tmp_path, dataset_config)
    assert rows(log) == [(1, 122, 838985046, 4.5)]
    assert log.titles["122"] == "The Città (1992)"


@pytest.mark.parametrize("name", ["movielens_20m", "movielens_32m"])
def test_movielens_csv_with_quoted_titles(name, tmp_path, dataset_config):
    put(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,11,3.5,1112486027\n1,2,0.5,1112484676\n",
        movies__csv='movieId,title,genres\n2,Jumanji (1995),Adventure\n11,"American President, The (1995)",Comedy\n',
    )
    log = read(name, tmp_path, dataset_config)
    assert rows(log) == [(1, 11, 1112486027, 3.5), (1, 2, 1112484676, 0.5)]
    assert log.titles["11"] == "The American President (1995)"


def test_movietweetings_ids_with_leading_zeros(tmp_path, dataset_config):
    put(
        tmp_path,
        ratings__dat="1::0104257::8::1364690142\n",
        movies__dat="0104257::A Few Good Men (1992)::Drama\n",
    )
    log = read("movietweetings", tmp_path, dataset_config)
    assert rows(log) == [(1, 104257, 1364690142, 8.0)]
    assert log.titles.to_dict() == {"104257": "A Few Good Men (1992)"}


HETREC = {
    "user_taggedartists-timestamps.dat": "userID\tartistID\ttagID\ttimestamp\n"
    "2\t52\t13\t1238536800000\n2\t52\t15\t1238536800000\n2\t63\t13\t-428720400000\n3\t52\t1\t1256770800000\n",
    "artists.dat": "id\tname\turl\tpictureURL\n52\tMorcheeba\thttp://x\thttp://y\n63\tEnigma\thttp://x\n",
}


def test_lastfm_hetrec(tmp_path, dataset_config):
    for name, text in HETREC.items():
        (tmp_path / name).write_text(text)
    log = read("lastfm_hetrec", tmp_path, dataset_config)
    assert rows(log) == [
        (2, 52, 1238536800, None),
        (2, 52, 1238536800, None),
        (2, 63, -428720400, None),
        (3, 52, 1256770800, None),
    ]
    assert log.titles.to_dict() == {"52": "Morcheeba", "63": "Enigma"}


STEAM_REVIEWS = (
    "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0, "
    "u'date': u'2017-12-17', u'text': u\"it's {u'date': u'1999-01-01'}, \\\"so\\\"\", u'early_access': False, u'page': 1}\n"
    "{u'username': u\"O'Neil \\u2665\", u'product_id': u'35140', u'date': u'1970-01-02', u'compensation': None, "
    "u'found_funny': [1, 2], u'text': u''}\n"
)
STEAM_GAMES = (
    "{u'app_name': u'Bravium', u'title': u'Bravium\\u2122', u'genres': [u'Indie', u'RPG'], u'id': u'725280'}\n"
    "{u'app_name': u'Arkham', u'id': u'35140', u'price': 19.99}\n"
    "{u'genres': [u'No id']}\n"
)


@pytest.mark.parametrize("packed", [True, False])
def test_steam(packed, tmp_path, dataset_config):
    ending = "__json__gz" if packed else "__json"
    put(tmp_path, **{f"steam_reviews{ending}": STEAM_REVIEWS, f"steam_games{ending}": STEAM_GAMES})
    log = read("steam", tmp_path, dataset_config)
    assert rows(log) == [("Chaos Syren", 725280, 1513468800, None), ("O'Neil ♥", 35140, 86400, None)]
    assert log.titles.to_dict() == {"725280": "Bravium™", "35140": "Arkham"}


@pytest.mark.parametrize(
    ("reviews", "message"),
    [
        ("{u'username': u'a', u'date': u'2017-12-17'}\n", "review 1: no product_id"),
        ("{u'username': u'a', u'product_id': u'1', u'date': u'soon'}\n", "a date is unreadable"),
        (
            "{u'username': u'a', u'product_id': u'1', u'date': u'2017-12-17'}\n__import__('os').system('false')\n",
            "line 2",
        ),
        ("{'username': open('x')}\n", "line 1"),
    ],
)
def test_steam_refuses(reviews, message, tmp_path, dataset_config):
    put(tmp_path, steam_reviews__json__gz=reviews, steam_games__json__gz=STEAM_GAMES)
    with pytest.raises(UserError, match=message):
        read("steam", tmp_path, dataset_config)


def review(user, item, time, stars=5.0):
    return json.dumps(
        {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": time, "helpful": [1, 2]}
    )


def test_amazon_2018(tmp_path, dataset_config):
    meta = [
        {"asin": "B1", "title": "Zelda &amp; Link", "category": ["Games"]},
        {"asin": "B2", "title": '<span id="x">var aPageStart = 1;'},
        {"asin": "B3"},
        {"asin": "B1", "title": "again"},
    ]
    put(
        tmp_path,
        Video_Games_5__json__gz="\n".join(
            [review("U2", "B1", 1445558400), review("U1", "B2", 1445558401, 1.0)]
        ),
        meta_Video_Games__json__gz="\n".join(map(json.dumps, meta)),
    )
    log = read("amazon_games_2018", tmp_path, dataset_config)
    assert rows(log) == [("U2", "B1", 1445558400, 5.0), ("U1", "B2", 1445558401, 1.0)]
    assert log.titles.to_dict() == {"B1": "Zelda & Link", "B2": "", "B3": ""}


def test_amazon_2014_metadata_is_python(tmp_path, dataset_config):
    put(
        tmp_path,
        reviews_Beauty_5__json__gz=review("U1", "7806397051", 1391040000, 1.0),
        meta_Beauty__json__gz="{'asin': '7806397051', 'salesRank': {'Beauty': 1}, 'title': \"WAWO 15 Color\"}\n",
    )
    log = read("amazon_beauty_2014", tmp_path, dataset_config)
    assert rows(log) == [("U1", 7806397051, 1391040000, 1.0)]
    assert log.titles["7806397051"] == "WAWO 15 Color"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reviewerID": "U", "asin": "B", "overall": 5.0}', "line 2: unixReviewTime is None"),
        ('{"reviewerID": "U", "asin": "B", "overall": "x", "unixReviewTime": 1}', "line 2: overall is 'x'"),
        ('{"reviewerID": "U", ', "line 2"),
    ],
)
def test_amazon_refuses(line, message, tmp_path, dataset_config):
    put(tmp_path, Video_Games_5__json__gz=review("U", "B", 5) + "\n" + line, meta_Video_Games__json__gz="{}")
    with pytest.raises(UserError, match=message):
        read("amazon_games_2018", tmp_path, dataset_config)


def test_truncated_gzip(tmp_path, dataset_config):
    put(tmp_path, meta_Video_Games__json__gz='{"asin": "B1"}')
    rng = np.random.default_rng(0)
    full = gzip.compress(
        "\n".join(review(f"U{i}", f"B{rng.integers(10**9)}", 5) for i in range(500)).encode()
    )
    middle = len(full) // 2
    for broken in (full[:middle], full[:middle] + bytes(50) + full[middle + 50 :], full[:5], b"PK"):
        (tmp_path / "Video_Games_5.json.gz").write_bytes(broken)
        with pytest.raises(UserError, match="Video_Games_5.json.gz"):
            read("amazon_games_2018", tmp_path, dataset_config)


def test_titles_may_be_missing_by_setting(tmp_path, roots, dataset_config):
    """games_bigrec end to end on a small log: products without a title go, short users keep their last row."""
    reviews = [review(f"U{u}", f"B{i}", 1000 + 10 * u + i) for u in range(12) for i in range(4)]
    put(
        tmp_path / "raw",
        Video_Games_5__json__gz="\n".join(reviews),
        meta_Video_Games__json__gz="\n".join(
            json.dumps({"asin": f"B{i}", "title": f"Game {i}"}) for i in range(3)
        ),
    )
    data = load_dataset(dataset_config("games_bigrec", f"dataset.raw_dir={tmp_path / 'raw'}"))
    assert data.titles == ["", "Game 0", "Game 1", "Game 2"]
    ids = np.concatenate(list(data.splits.values()))
    assert len(ids) == 12 and (data.history_lengths(ids) == 2).all() and (data.targets(ids) == 3).all()


# --- the real files -----------------------------------------------------------------------------


def test_movietweetings_100k(shared_data, roots, dataset_config):
    folder = shared_data / "movietweetings-100k"
    log = read("movietweetings", folder, dataset_config)
    assert (len(log.timestamps), len(log.users.values), len(log.items.values)) == (100_000, 16_554, 10_506)
    lines = (folder / "ratings.dat").read_text().splitlines()
    for i in (0, 77_777, 99_999):
        user, item, rating, time = lines[i].split("::")
        assert rows(log)[i] == (int(user), int(item), int(time), float(rating))


def test_movielens_ilora_holds_out_as_many_users_as_the_official_files(shared_data, roots, dataset_config):
    data = load_dataset(dataset_config("movielens_ilora", f"dataset.raw_dir={shared_data / 'ml-100k'}"))
    assert (len(data.splits["valid"]), len(data.splits["test"])) == (94, 95)
    assert len(data.items) == 82_520  # ratings of 3 and more
    held_out = np.concatenate([data.users_of(data.splits[s]) for s in ("valid", "test")])
    assert len(np.unique(held_out)) == 189
    assert not np.isin(held_out, data.users_of(data.splits["train"])).any()


def test_movielens_10m_windows(shared_data, roots, dataset_config):
    folder = shared_data / "ml-10m"
    if not folder.is_dir():
        pytest.skip(f"no MovieLens-10M at {folder}")
    data = load_dataset(dataset_config("movielens_dllm2rec", f"dataset.raw_dir={folder}"))
    assert [len(data.splits[s]) for s in ("train", "valid", "test")] == [7_441_019, 930_127, 930_128]


def test_movietweetings_prepared_is_the_5_core(shared_data, roots, dataset_config):
    """Against a 5-core by plain dictionaries, one round after the other."""
    folder = shared_data / "movietweetings-100k"
    data = load_dataset(dataset_config("movietweetings", f"dataset.raw_dir={folder}"))
    pairs = [tuple(line.split("::")[:2]) for line in (folder / "ratings.dat").read_text().splitlines()]
    while True:
        users, items = (Counter(pair[side] for pair in pairs) for side in (0, 1))
        kept = [(u, i) for u, i in pairs if users[u] >= 5 and items[i] >= 5]
        if len(kept) == len(pairs):
            break
        pairs = kept
    assert (len(data.items), len(data.offsets) - 1, data.n_items) == (len(pairs), len(users), len(items))
    assert [len(data.splits[s]) for s in ("train", "valid", "test")] == [44_044, 5_506, 5_506]
