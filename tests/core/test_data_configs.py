"""Every shipped dataset setting composes and is valid."""

from __future__ import annotations

import pytest

from src.core.paths import CONF

NAMES = sorted(p.stem for p in (CONF / "dataset").glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_composes(name, dataset_config):
    config = dataset_config(name)
    assert config.name == name
    assert config.max_history == 10


def test_papers_rules(dataset_config):
    games = dataset_config("games_bigrec")
    assert (games.min_history, games.short_users, games.split) == (10, "last", "global_time")
    ilora = dataset_config("movielens_ilora")
    assert (ilora.min_rating, ilora.min_history, ilora.split) == (3.0, 3, "user_split")
