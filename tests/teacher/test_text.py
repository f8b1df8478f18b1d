"""Teachers from text: vectors against scikit-free TF-IDF and plain transformers, scores against loops."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from src.core.data_utils import InteractionData
from src.core.errors import ConfigError, UserError
from src.core.geometry import geometry, principal_directions
from src.core.teacher_store import TeacherStore
from src.teacher.config import teacher_fingerprint
from src.teacher.export import fill_store
from src.teacher.factory import build_teacher
from src.teacher.quality import ensure_quality
from src.teacher.text import TextTeacher
from tests.teacher.conftest import compose_teacher
from tests.teacher.test_classical import build, settings_of, toy
from tests.teacher.test_families import FAMILIES, write_family

TITLES = [
    "",
    "Red steel bolt",
    "red steel nut",
    "Blue plastic tube",
    "blue tube cap",
    "Bolt red",
    "Paper towel",
]


def shop() -> InteractionData:
    """The toy log with titles that say something."""
    return replace(toy(), titles=TITLES)


class TestGeometry:
    def test_by_hand(self):
        # Centred already: variances 3 : 1 in two orthogonal directions, none in the third.
        shape = geometry(np.array([[3**0.5, 0, 0], [-(3**0.5), 0, 0], [0, 1, 0], [0, -1, 0]]))
        assert shape.largest == pytest.approx(0.75)
        assert shape.effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
        assert (shape.rank, shape.width) == (2, 3)

    def test_no_variance(self):
        assert geometry(np.ones((4, 3))).rank == 0

    def test_principal_components_keep_distances(self):
        vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        left, values = principal_directions(vectors)
        space, centred = left * values, vectors - vectors.mean(0)
        np.testing.assert_allclose(space @ space.T, centred @ centred.T, atol=1e-5)


class TestTfidf:
    @pytest.mark.parametrize("least", [1, 2])
    def test_vectors_against_the_definition(self, least):
        teacher = build("tfidf", shop(), None, "teacher.export.top_k=3", f"teacher.least_items={least}")
        terms = []
        for title in TITLES[1:]:
            words = re.findall(r"\w\w+", title.lower())
            terms.append(Counter(words + [" ".join(p) for p in zip(words, words[1:], strict=False)]))
        df = Counter(t for counted in terms for t in counted)
        n = len(terms)
        rows = [
            {
                t: (1 + math.log(c)) * (math.log((1 + n) / (1 + df[t])) + 1)
                for t, c in counted.items()
                if df[t] >= least
            }
            for counted in terms
        ]
        expected = np.array([[sum(a[t] * b.get(t, 0) for t in a) for b in rows] for a in rows])
        length = np.sqrt(np.maximum(np.diag(expected), 1e-30))  # a title that shares no word is zeros
        vectors = teacher.item_embeddings()
        assert not vectors[0].any() and vectors.dtype == np.float32
        np.testing.assert_allclose(
            vectors[1:] @ vectors[1:].T, expected / np.outer(length, length), atol=1e-5
        )

    def test_titles_without_words(self):
        with pytest.raises(UserError, match="titles hold no words in 2 items.*dataset"):
            build("tfidf", replace(toy(), titles=["", *"-+*/=!"]), None, "teacher.export.top_k=3")


@pytest.mark.parametrize(
    "decay, whiten, dim, popularity", [(0.5, 0.5, None, 0.3), (1.0, 0.0, 2, 0.0), (0.8, 1.0, 3, 1.0)]
)
def test_scores_against_loops(decay, whiten, dim, popularity):
    data = shop()
    similarity = (
        f"{{decay:{decay},whiten:{whiten},dim:{dim or 'null'},popularity:{popularity},temperature:0.2}}"
    )
    teacher = build("tfidf", data, None, f"teacher.similarity={similarity}", "teacher.export.top_k=3")
    vectors = teacher.item_embeddings()[1:].astype(float)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    kept = s > 1e-6
    space = (u[:, kept] * s[kept] ** (1 - whiten))[:, :dim]
    space /= np.linalg.norm(space, axis=1, keepdims=True)
    ids = np.concatenate([data.splits["train"], data.splits["test"]])
    counts = Counter(data.targets(data.splits["train"]).tolist())
    for sample, found in zip(ids, teacher.score_all(ids), strict=True):
        history = [int(i) for i in data.histories(np.array([sample]))[0] if i]
        weights = [decay**age for age in range(len(history))][::-1]
        target = int(data.targets(np.array([sample]))[0])
        logits = []
        for item in range(1, data.n_items + 1):
            own = item == target and sample in data.splits["train"]  # ranked without its own target
            cosine = sum(
                w * float(space[h - 1] @ space[item - 1]) for w, h in zip(weights, history, strict=True)
            )
            logits.append(cosine / sum(weights) / 0.2 + popularity * math.log(1 + counts[item] - own))
        expected = np.array(logits) - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert len(teacher.train_sample_ids()) == 0


def text_config(folder: Path, *overrides: str):
    return compose_teacher("teacher=text", f"teacher.llm.path={folder}", "teacher.export.top_k=5", *overrides)


def prepared(folder: Path, data: InteractionData, *overrides: str) -> tuple[TextTeacher, dict]:
    teacher = build_teacher(text_config(folder, *overrides), data)
    assert isinstance(teacher, TextTeacher)
    return teacher, dict(teacher.prepare(None))


@pytest.mark.parametrize(
    "name, prompt, pooling, layers",
    [
        ("llama", "{title}", "mean", [-1]),
        ("llama", "Product: {title}. Next:", "mean", [1]),
        ("llama", "Product: {title}. Next:", "last", [0, 1, 2]),
        ("qwen2", "{title}", "mean", [-1]),  # no begin token
        ("bert", "{title}", "mean", [-1]),
        ("bert", "{title}", "cls", [1, -1]),
    ],
)
def test_states_against_one_title_at_a_time(name, prompt, pooling, layers, folder_of, demo_data, roots):
    folder = folder_of(name)
    teacher, _ = prepared(
        folder,
        demo_data,
        f"teacher.text.prompt='{prompt}'",
        f"teacher.text.pooling={pooling}",
        f"teacher.text.layers={layers}",
        "teacher.text.batch_size=7",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    before, after = prompt.split("{title}")

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    start = [
        t for t in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if t is not None
    ][:1]
    end = [tokenizer.sep_token_id] if name == "bert" else []
    for item in (1, 17, demo_data.n_items):
        space = "" if name == "bert" else " "
        head, title = start + ids(before.rstrip()), ids(space + demo_data.titles[item])
        tokens = torch.tensor([head + title + ids(after) + end])
        with torch.no_grad():
            states = model(tokens, output_hidden_states=True).hidden_states
        state = sum(states[layer][0] for layer in layers) / len(layers)
        words = slice(None) if name == "bert" else slice(len(head), len(head) + len(title))
        expected = {"mean": state[words].mean(0), "last": state[-1], "cls": state[0]}[pooling]
        np.testing.assert_allclose(teacher.item_embeddings()[item], expected.numpy(), atol=2e-5)


class TestStatesAreKept:
    def test_computed_once_and_the_llm_is_named(self, folder_of, demo_data, roots, monkeypatch):
        first, told = prepared(folder_of("llama"), demo_data)
        monkeypatch.setattr("src.teacher.title_states.title_states", None)  # nothing is computed again
        again, told_again = prepared(folder_of("llama"), demo_data, "teacher.similarity.decay=0.9")
        assert (told["reused"], told_again["reused"]) == (False, True)
        assert told["llm"] == told_again["llm"] and told["llm"]["model_type"] == "llama"
        assert first.weights() == again.weights()
        np.testing.assert_array_equal(first.item_embeddings(), again.item_embeddings())

    def test_states_of_another_llm_are_refused(self, folder_of, demo_data, roots, tmp_path):
        folder = write_family(FAMILIES["llama"], tmp_path / "llm", demo_data)
        states = roots / "data" / "models" / demo_data.name / "title_states"
        first, _ = prepared(folder, demo_data)
        (one,) = (p for p in states.iterdir() if p.is_dir())
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] += 1
        model.save_pretrained(folder)
        again, told = prepared(folder, demo_data)  # under the same path: computed anew
        assert not told["reused"] and again.weights() != first.weights()
        (two,) = (p for p in states.iterdir() if p.is_dir() and p != one)
        shutil.rmtree(two)
        shutil.copytree(one, two)
        with pytest.raises(UserError, match="title_states/.*: llm is '.*'; expected '.*'; delete"):
            prepared(folder, demo_data)


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("bert", ["teacher.text.pooling=last"], "pooling=last with .*an encoder; expected mean or cls"),
        ("llama", ["teacher.text.pooling=cls"], "pooling=cls with .*a causal LM; expected mean or last"),
        ("llama", ["teacher.text.layers=[3]"], r"names layer 3; expected -3\.\.2"),
        ("llama", [f"teacher.text.prompt='{'word ' * 300}{{title}}'"], "prompt of .* tokens; expected < 256"),
    ],
)
def test_settings_that_the_llm_cannot_serve(name, overrides, message, folder_of, demo_data, roots):
    with pytest.raises(UserError, match=message):
        prepared(folder_of(name), demo_data, *overrides)


def test_vectors_of_one_direction_are_refused(folder_of, demo_data, roots, monkeypatch):
    table = np.outer(np.arange(1.0, demo_data.n_items + 1), np.ones(8)).astype(np.float32)
    monkeypatch.setattr("src.teacher.title_states.title_states", lambda *_: (table, {}))
    with pytest.raises(
        UserError, match="100.0% of their variance in one direction .*rank 1,.*teacher.text.layers"
    ):
        prepared(folder_of("llama"), demo_data)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["teacher.text.pooling=null"], "text.pooling: found None"),
        (["teacher.text.layers=[]"], "text.layers: found none"),
        (["teacher.text.prompt=title"], "text.prompt: found 'title', expected {title} once"),
        (["teacher/llm=tiny", "teacher.llm.path=null"], "llm.kind: found tiny"),
        (["teacher.export.splits=[test,test]"], "export.splits: found .*expected each split once"),
        (["teacher.export.splits=[dev]"], "export.splits: found 'dev'"),
    ],
)
def test_contradictions(overrides, message):
    with pytest.raises(ConfigError, match=message):
        text_config(Path("llm"), *overrides)


class TestVectorsOnly:
    def test_store(self, demo_data, roots, tmp_path):
        config = compose_teacher("teacher=tfidf", "teacher.export.splits=[]", "teacher.export.top_k=5")
        folder = tmp_path / teacher_fingerprint(config, demo_data.fingerprint)
        store, _ = fill_store(config, demo_data, folder, None)
        assert sorted(p.name for p in folder.iterdir()) == ["item_embeddings.safetensors", "manifest.json"]
        assert (store.top_k, store.splits, store.manifest["n_samples"]) == (0, (), {})
        assert len(store.in_sample_ids()) == 0
        np.testing.assert_array_equal(
            store.item_embeddings(),
            build("tfidf", demo_data, None, "teacher.export.top_k=5").item_embeddings(),
        )
        with pytest.raises(
            UserError, match=r"no rankings of train \(it has item vectors only\).*export.splits"
        ):
            store.rows("train")

    def test_some_splits(self, demo_data, roots, tmp_path):
        config = settings_of("tfidf", "teacher.export.splits=[valid]", "teacher.export.top_k=5")
        folder = tmp_path / "store"
        whole, _ = fill_store(
            replace(config, export=replace(config.export, splits=("train", "valid"))),
            demo_data,
            tmp_path / "two",
            None,
        )
        store, _ = fill_store(config, demo_data, folder, None)
        assert store.splits == ("valid",) and store.top_k == 5
        np.testing.assert_array_equal(store.rows("valid").rankings, whole.rows("valid").rankings)
        report = ensure_quality(store, demo_data, store.in_sample_ids(), config.export, config.seed, None)
        assert (report / "quality.md").is_file()
        assert TeacherStore(folder, demo_data.fingerprint).splits == ("valid",)
