"""Ranking methods against one-text-at-a-time scoring, against each other, and against their batch."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import ConfigError, UserError
from src.teacher.prompts import Example, PromptBuilder, collate
from src.teacher.ranking import SCORE_KIND, hidden, make_ranker
from src.teacher.ranking.base import Context
from src.teacher.ranking.tree import TitleTree
from src.teacher.samples import SampleSource

POOL = 12


def context(teacher, **export) -> Context:
    settings = replace(teacher.config.export, pool=POOL, top_k=5, **{"ranking": "rerank", **export})
    return Context(teacher.model, teacher.source, settings, True, 7)


def with_lists(teacher, count: int = 8) -> SampleSource:
    """The same teacher's samples with prompts that list candidates."""
    config = replace(teacher.config.prompt, candidates=count)
    tokenizer = teacher.builder.tokens.tokenizer
    return SampleSource(
        teacher.data, PromptBuilder(config, tokenizer, teacher.data.titles, 512, 1), teacher.encoder
    )


@torch.no_grad()
def likelihoods(teacher, sample: int, prompt: Example, items) -> np.ndarray:
    """log p(title | prompt): whole texts, one at a time, logits of the plain causal LM, no cache and no padding."""
    model, data, titles, out = teacher.model, teacher.data, teacher.builder.answers, []
    gate = model.gate(teacher.encoder.h_seq(data.histories(np.array([sample]))))
    for item in items:
        text = Example(
            np.concatenate([prompt.ids, titles[item]]), prompt.items, prompt.prefix, len(prompt.ids)
        )
        batch = collate([text])
        with model.gates.use(gate):
            logits = model.llm(inputs_embeds=model.embed(batch)).logits[0].double()
        log_p = logits.log_softmax(-1)
        at = len(prompt.ids)
        out.append(sum(float(log_p[at + i - 1, t]) for i, t in enumerate(titles[item].tolist())))
    return np.array(out)


@pytest.mark.parametrize("listed", [False, True])
def test_rerank_is_the_likelihood_of_each_title_alone(trained, demo_data, listed):
    teacher, _ = trained
    c = context(teacher)
    if listed:
        c = replace(c, source=with_lists(teacher))
    ranker, ids = make_ranker(c), demo_data.splits["test"][:3]
    rows = ranker.rank(ids, POOL)
    rows.check(demo_data.n_items, "log_likelihood", "test")
    for row, sample in enumerate(ids.tolist()):
        history = demo_data.histories(ids[row : row + 1])[0]
        prompt = ranker.prompt(sample, history, ranker.pools(ids[row : row + 1])[0])
        target = int(demo_data.targets(ids[row : row + 1])[0])
        expected = likelihoods(teacher, sample, prompt, [*rows.rankings[row], target])
        np.testing.assert_allclose([*rows.scores[row], rows.target_scores[row]], expected, rtol=0, atol=1e-4)


def test_the_pool_is_sasrecs_best_without_history_and_without_privilege_for_the_target(trained, demo_data):
    teacher, _ = trained
    ids = demo_data.splits["test"]
    histories, targets = demo_data.histories(ids), demo_data.targets(ids)
    scores = teacher.encoder.log_probabilities(histories).numpy()
    for exclude in (True, False):
        pools = make_ranker(context(teacher, exclude_history=exclude)).pools(ids)
        for row, pool in enumerate(pools):
            allowed = [
                i for i in range(1, demo_data.n_items + 1) if not (exclude and i in histories[row].tolist())
            ]
            best = sorted(allowed, key=lambda i: (-scores[row, i - 1], i))[:POOL]
            assert pool.tolist() == best
    hit = (make_ranker(context(teacher)).pools(ids) == targets[:, None]).any(axis=1)
    assert 0 < hit.sum() < len(ids)
    # listed or not, the true item's likelihood is known, and the list is the pool
    rows = make_ranker(context(teacher)).rank(ids[:20], POOL)
    assert np.isfinite(rows.target_scores).all()
    inside = (rows.rankings == targets[:20, None]).any(axis=1)
    np.testing.assert_array_equal(inside, hit[:20])


def test_the_prompt_lists_the_pool_once_in_an_order_of_its_own(trained, demo_data):
    teacher, _ = trained
    ranker = make_ranker(replace(context(teacher), source=with_lists(teacher)))
    ids = demo_data.splits["test"][:6]
    pools = ranker.pools(ids)
    moved = 0
    for sample, history, pool in zip(ids.tolist(), demo_data.histories(ids), pools, strict=True):
        prompt = ranker.prompt(sample, history, pool)
        listed = prompt.items[int((history > 0).sum()) :]
        assert sorted(listed.tolist()) == sorted(pool.tolist())
        moved += listed.tolist() != pool.tolist()
        assert ranker.prompt(sample, history, pool).items.tolist() == prompt.items.tolist()
    assert moved == len(ids)


def test_trie_with_all_beams_scores_every_title_and_few_beams_are_a_part_of_it(trained, demo_data):
    teacher, _ = trained
    n, ids = demo_data.n_items, demo_data.splits["test"][:5]
    prompts = [teacher.builder.build(h) for h in demo_data.histories(ids)]
    pairs = zip(ids.tolist(), prompts, strict=True)
    exact = np.stack([likelihoods(teacher, sample, prompt, range(1, n + 1)) for sample, prompt in pairs])
    everything = make_ranker(context(teacher, ranking="trie", beams=n)).rank(ids, n)
    in_order = np.take_along_axis(exact, everything.rankings - 1, axis=1)
    np.testing.assert_array_equal(np.sort(everything.rankings, axis=1), np.tile(np.arange(1, n + 1), (5, 1)))
    np.testing.assert_allclose(everything.scores, in_order, rtol=0, atol=1e-4)
    assert (np.diff(in_order, axis=1) <= 2e-4).all()
    of_targets = exact[np.arange(5), demo_data.targets(ids) - 1]
    np.testing.assert_allclose(everything.target_scores, of_targets, rtol=0, atol=1e-4)
    few = make_ranker(context(teacher, ranking="trie", beams=6)).rank(ids, 6)
    few.check(n, "log_likelihood", "test")
    expected = np.take_along_axis(exact, few.rankings - 1, axis=1)
    np.testing.assert_allclose(few.scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ranking", ["rerank", "trie", "grounding", "hidden"])
def test_a_sample_does_not_depend_on_its_batch(trained, demo_data, ranking):
    teacher, _ = trained
    ids = demo_data.splits["test"][:12]
    results = []
    for size, order in ((12, np.arange(12)), (1, np.arange(12)), (5, np.arange(12)[::-1])):
        ranker = make_ranker(context(teacher, ranking=ranking, beams=5, batch_size=size, max_new_tokens=10))
        rows = ranker.rank(ids[order], 5)
        assert rows.sample_ids.tolist() == ids[order].tolist()
        rows.check(demo_data.n_items, SCORE_KIND[ranking], ranking)
        back = np.argsort(order)
        results.append((rows.rankings[back], rows.scores[back], rows.target_scores[back]))
    for rankings, scores, of_targets in results[1:]:
        np.testing.assert_allclose(scores, results[0][1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(of_targets, results[0][2], rtol=0, atol=1e-5)
        near = np.isclose(scores[:, 1:], scores[:, :-1], rtol=0, atol=2e-5).any(axis=1)
        np.testing.assert_array_equal(rankings[~near], results[0][0][~near])


def test_duplicate_titles_keep_all_ids(trained, demo_data):
    teacher, _ = trained
    titles = list(demo_data.titles)
    titles[5] = titles[9]
    data = replace(demo_data, titles=titles)
    builder = PromptBuilder(teacher.config.prompt, teacher.builder.tokens.tokenizer, titles, 512, 1)
    c = replace(context(teacher), source=SampleSource(data, builder, teacher.encoder))
    ids, n = demo_data.splits["test"][:4], demo_data.n_items
    for export in ({"ranking": "trie", "beams": n}, {"ranking": "rerank", "pool": n}):
        all_items = replace(c, export=replace(c.export, exclude_history=False, **export))
        rows = make_ranker(all_items).rank(ids, n)
        assert (np.sort(rows.rankings, axis=1) == np.arange(1, n + 1)).all()
        for ranking, scores in zip(rows.rankings.tolist(), rows.scores, strict=True):
            first = ranking.index(5)
            assert ranking[first + 1] == 9 and scores[first] == scores[first + 1]


def test_title_tree_by_hand():
    tree = TitleTree.of([np.array(a) for a in ([1, 2, 9], [1, 3, 9], [1, 2, 9], [4, 9], [1, 2])])
    assert tree.token.tolist() == [1, 2, 9, 3, 9, 4, 9]
    assert tree.parent.tolist() == [-1, 0, 1, 0, 3, -1, 5]
    assert tree.depth.tolist() == [0, 1, 2, 1, 2, 0, 1]
    assert tree.end.tolist() == [2, 4, 2, 6, 1]
    assert tree.inner.tolist() == [0, 1, 3, 5]  # tokens that some other token follows
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert tree.order.astype(int).tolist() == expected
    assert tree.totals(np.array([1, 10, 100, 20, 200, 5, 50])).tolist() == [111, 221, 111, 55, 11]


def test_the_trie_of_a_catalogue_needs_no_square_of_its_nodes():
    """5,000 titles of 7 tokens: about 25,000 inner nodes, whose visibility would be 600 MB."""
    titles = list(np.random.default_rng(0).integers(0, 1000, (5000, 7)))
    tracemalloc.start()
    tree = TitleTree.of(titles)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tree.inner) > 20_000 and peak < 100e6


def test_hidden_orders_equal_scores_by_item_id(trained, demo_data, monkeypatch):
    teacher, _ = trained
    ids, n = demo_data.splits["test"][:30], demo_data.n_items
    scores = torch.randint(-3, 0, (30, n), generator=torch.Generator().manual_seed(0)).float()

    def tied(context, sample_ids, items):
        for rows in np.split(np.arange(30)[::-1], 3):  # in another order than asked for
            yield rows, scores[rows.copy()]

    monkeypatch.setattr(hidden, "catalogue_scores", tied)
    ranker = make_ranker(context(teacher, ranking="hidden"))
    rows = ranker.rank(ids, 20)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :20] + 1
    np.testing.assert_array_equal(rows.rankings, expected)
    targets = demo_data.targets(ids)
    np.testing.assert_array_equal(rows.target_scores, scores.numpy()[np.arange(30), targets - 1])
    scores[17, 3] = float("nan")
    with pytest.raises(UserError, match=f"scores of sample {ids[17]} are not finite"):
        ranker.rank(ids, 20)


def test_grounding_measures_the_distance_of_the_generated_text(trained, demo_data, monkeypatch):
    teacher, _ = trained
    ranker = make_ranker(context(teacher, ranking="grounding", beams=2))
    ids = demo_data.splits["test"][:3]
    # A teacher that writes the title of item 17 lies at distance 0 from it.
    monkeypatch.setattr(ranker, "generate", lambda ids: [demo_data.titles[17]] * len(ids))
    rows = ranker.rank(ids, demo_data.n_items)
    assert (rows.rankings[:, 0] == 17).all() and np.abs(rows.scores[:, 0]).max() < 1e-4
    assert (np.diff(rows.scores, axis=1) >= 0).all()
    vectors = ranker.embedder.titles()[1:].astype(np.float64)
    expected = np.linalg.norm(vectors - vectors[16], axis=1)
    np.testing.assert_allclose(rows.scores[0], np.sort(expected), atol=1e-4)
    np.testing.assert_allclose(rows.target_scores, expected[demo_data.targets(ids) - 1], atol=1e-4)


def test_greedy_generation_is_the_models_own(trained, demo_data):
    """Against Hugging Face's generate on the same prompt, one sample at a time."""
    teacher, _ = trained
    ranker = make_ranker(context(teacher, ranking="grounding", beams=1, max_new_tokens=12))
    ids = demo_data.splits["test"][:4]
    found, stop = ranker.generate(ids), teacher.builder.stop_ids
    tokenizer = teacher.builder.tokens.tokenizer
    for sample, text in zip(ids, found, strict=True):
        history = demo_data.histories(np.array([sample]))
        batch = collate([teacher.builder.build(history[0])])
        with torch.no_grad(), teacher.model.gates.use(teacher.model.gate(teacher.encoder.h_seq(history))):
            written = teacher.model.llm.generate(
                inputs_embeds=teacher.model.embed(batch),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=sorted(stop),
                pad_token_id=0,
            )[0].tolist()
        cut = next((i for i, t in enumerate(written) if t in stop), len(written))
        assert text == tokenizer.decode(written[:cut], skip_special_tokens=True).strip()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_text_embeddings_against_the_plain_model(trained, demo_data, pooling):
    from src.teacher.config import EmbeddingConfig
    from src.teacher.llm import backbone
    from src.teacher.title_states import TextEmbedder

    teacher, _ = trained
    model, builder = teacher.model, teacher.builder
    tables = {}
    for weights in ("base", "adapted"):
        for layer in (-1, 1):
            config = EmbeddingConfig("text", pooling, weights, layer)
            table = tables[weights, layer] = TextEmbedder(model, builder, config, 7).titles()
            np.testing.assert_allclose(table, TextEmbedder(model, builder, config, 60).titles(), atol=1e-5)
            assert table.dtype == np.float32 and not table[0].any()
    item = 23
    ids = torch.tensor([[*builder.tokens.start, *builder.tokens.of(" " + demo_data.titles[item])]])
    with torch.no_grad(), model.gates.uniform(), model.llm.disable_adapter():
        hidden = backbone(model.llm)(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in (-1, 1):
        states = hidden[layer][0]
        expected = states[-1] if pooling == "last" else states[len(builder.tokens.start) :].mean(0)
        np.testing.assert_allclose(tables["base", layer][item], expected.numpy(), atol=1e-5)
        assert not np.allclose(tables["base", layer], tables["adapted", layer], atol=1e-4)
    with pytest.raises(UserError, match=r"layer 9; expected -3\.\.2"):
        TextEmbedder(model, builder, EmbeddingConfig("text", "last", "base", 9), 7)


def test_unusable_settings_are_named(trained, make_config, demo_data):
    teacher, _ = trained
    for overrides, message in (
        (["ranking=rerank", "pool=20"], "top_k=100 with ranking=rerank and pool=20, expected top_k <= pool"),
        (["ranking=trie", "beams=4"], "top_k=100 with ranking=trie and beams=4"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_config(*(f"teacher.export.{o}" for o in overrides))
    with pytest.raises(ConfigError, match=r"ranking: found trie with objective.lm=0"):
        make_config("teacher.export.ranking=trie", "teacher.objective.lm=0.0")
    room = demo_data.n_items - demo_data.max_history
    with pytest.raises(UserError, match=rf"pool=55; expected at most {room} items outside a history"):
        make_ranker(replace(context(teacher), export=replace(context(teacher).export, pool=55)))
    with pytest.raises(UserError, match="top_k=9 and 6 items scored"):
        make_ranker(context(teacher, ranking="trie", beams=6)).rank(demo_data.splits["test"][:2], 9)
    with pytest.raises(UserError, match=r"max_new_tokens, or an LLM with a longer context"):
        make_ranker(context(teacher, ranking="grounding", max_new_tokens=500)).rank(
            demo_data.splits["test"][:2], 3
        )


def test_scores_that_are_not_finite_are_refused(trained, demo_data):
    teacher, _ = trained
    ids = demo_data.splits["test"][:2]
    weight = teacher.model.projector[2].bias
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        for ranking in ("rerank", "trie", "hidden"):
            with pytest.raises(UserError, match="not finite"):
                make_ranker(context(teacher, ranking=ranking)).rank(ids, 5)
    finally:
        with torch.no_grad():
            weight.copy_(before)
