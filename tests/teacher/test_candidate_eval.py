"""iLoRA's protocol on a small trained teacher: generation, likelihood, item scores, the frozen SASRec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.candidates import CandidateConfig, CandidateSet, load_candidates
from src.core.errors import UserError
from src.teacher import candidate_eval
from src.teacher.candidate_eval import by_item_scores, by_language, match_title
from src.teacher.classical import KnnTeacher
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.prompts import PromptBatch, collate
from src.teacher.ranking.base import Context
from src.teacher.ranking.beams import write_texts
from src.teacher.ranking.prefix import SharedPrefix
from tests.teacher.test_ranking import likelihoods

COUNT = 6


@pytest.fixture(scope="module")
def lister(make_config, demo_data, teacher_roots) -> IloraTeacher:
    """A teacher whose prompts list candidates."""
    config = make_config(
        "teacher.objective={item:0.0,lm:1.0,prior:none}",
        f"teacher.prompt.candidates={COUNT}",
        "teacher.export={ranking:rerank,pool:10,top_k:10,embedding:{source:text}}",
        "teacher.train={samples:200,epochs:2,lr:0.01}",
    )
    teacher = IloraTeacher(config, demo_data)
    teacher.prepare(None)
    return teacher


@pytest.fixture(scope="module")
def candidates(demo_data, teacher_roots) -> CandidateSet:
    found = load_candidates(CandidateConfig(COUNT, 2, 14, 0), demo_data)
    assert found is not None
    return found


def some(candidates: CandidateSet, rows) -> CandidateSet:
    return replace(
        candidates,
        sample_ids=candidates.sample_ids[rows],
        items=candidates.items[:, rows],
        targets=candidates.targets[rows],
    )


def context(teacher: IloraTeacher, batch_size: int = 32) -> Context:
    return teacher._context(batch_size)


def prompts(teacher, candidates, draw: int = 0):
    limit = max(map(len, teacher.builder.answers))
    histories = teacher.data.histories(candidates.sample_ids)
    return [
        teacher.builder.build(h, candidates=c.astype(np.int64), reserve=limit)
        for h, c in zip(histories, candidates.items[draw], strict=True)
    ]


@torch.no_grad()
def argmax_by_argmax(teacher, history: np.ndarray, prompt, limit: int, stop: set[int]) -> list[int]:
    """One row, the whole text anew for every token, logits of the plain causal LM: no cache, no padding."""
    model, written = teacher.model, []
    gate = model.gate(teacher.encoder.h_seq(history[None]))
    for _ in range(limit):
        text = replace(prompt, ids=np.concatenate([prompt.ids, np.array(written, np.int64)]))
        with model.gates.use(gate):
            logits = model.llm(inputs_embeds=model.embed(collate([text]))).logits[0, -1]
        token = int(logits.argmax())
        if token in stop:
            break
        written.append(token)
    return written


def generated(teacher, histories, examples, limit: int) -> list[list[int]]:
    model = teacher.model
    gate = model.gate(teacher.encoder.h_seq(histories))
    with torch.no_grad(), model.gates.use(gate):
        prefix = SharedPrefix(model, collate(examples), True)
        return write_texts(prefix, len(examples), limit, teacher.builder.stop_ids)


def test_greedy_is_one_argmax_after_another_whatever_the_batch(lister, candidates):
    histories, examples = lister.data.histories(candidates.sample_ids), prompts(lister, candidates)
    assert len({len(e.ids) for e in examples}) > 3, "there is padding"
    stop = lister.builder.stop_ids
    expected = [argmax_by_argmax(lister, h, e, 9, stop) for h, e in zip(histories, examples, strict=True)]
    assert any(expected) and len({tuple(t) for t in expected}) > 1
    assert generated(lister, histories, examples, 9) == expected
    order = np.random.default_rng(0).permutation(len(examples))
    shuffled = generated(lister, histories[order], [examples[i] for i in order], 9)
    assert [shuffled[i] for i in np.argsort(order)] == expected
    assert [generated(lister, histories[i : i + 1], [examples[i]], 9)[0] for i in range(4)] == expected[:4]


def test_greedy_is_hugging_faces_generate_with_left_padding(lister, candidates):
    """The papers' way: the batch padded on the left, mask and positions given, the gate in effect."""
    model, histories = lister.model, lister.data.histories(candidates.sample_ids)
    examples, stop = prompts(lister, candidates), lister.builder.stop_ids
    right = collate(examples)
    shift = right.ids.shape[1] - right.mask.sum(dim=1)
    batch = PromptBatch(
        *(
            torch.stack([row.roll(int(n)) for row, n in zip(part, shift, strict=True)])
            for part in (right.ids, right.items, right.mask)
        ),
        right.readout + shift,
        right.labels,
    )
    with torch.no_grad(), model.gates.use(model.gate(lister.encoder.h_seq(histories))):
        written = model.llm.generate(
            inputs_embeds=model.embed(batch),
            attention_mask=batch.mask.long(),
            max_new_tokens=9,
            do_sample=False,
            eos_token_id=sorted(stop),
            pad_token_id=0,
        ).tolist()
    cut = [row[: next((i for i, t in enumerate(row) if t in stop), len(row))] for row in written]
    assert generated(lister, histories, examples, 9) == cut


def test_the_gate_matters_to_what_is_written(lister, candidates):
    histories, examples = lister.data.histories(candidates.sample_ids), prompts(lister, candidates)
    model = lister.model
    with torch.no_grad(), model.gates.use(model.gate(lister.encoder.h_seq(histories))):
        own = SharedPrefix(model, collate(examples), True).last
    with torch.no_grad(), model.gates.uniform():
        uniform = SharedPrefix(model, collate(examples), True).last
    assert (own - uniform).abs().max() > 1e-4


def test_likelihood_is_that_of_each_title_alone(lister, candidates, monkeypatch):
    seen = []
    best = CandidateSet.best
    monkeypatch.setattr(CandidateSet, "best", lambda s, v, r: seen.append(v) or best(s, v, r))
    few = some(candidates, np.array([0, 5, 9]))
    choices = by_language(context(lister), few)
    for draw in range(2):
        for row, prompt in enumerate(prompts(lister, few, draw)):
            shown = few.items[draw, row]
            expected = likelihoods(lister, int(few.sample_ids[row]), prompt, shown)
            np.testing.assert_allclose(seen[0][draw, row], expected, rtol=0, atol=1e-4)
            right = shown[expected.argmax()] == few.targets[row]
            assert choices["likelihood"].hits[draw, row] == right
    assert choices["likelihood"].valid.all()


def test_a_row_does_not_depend_on_its_batch(lister, candidates):
    whole = by_language(context(lister), candidates)
    for size, rows in ((1, np.arange(14)), (5, np.array([3, 11, 7]))):
        part = by_language(context(lister, size), some(candidates, rows))
        for way, choices in part.items():
            np.testing.assert_array_equal(choices.hits, whole[way].hits[:, rows])
            np.testing.assert_array_equal(choices.valid, whole[way].valid[:, rows])


def test_what_is_written_is_judged_by_its_first_line(lister, candidates, monkeypatch):
    """A teacher that writes what we say: right, a wrong candidate, another item, two candidates, in turn."""
    data, tokenizer = lister.data, lister.builder.tokens.tokenizer
    few = some(candidates, np.arange(4))
    plan: list[str] = []
    for row in range(4):
        shown, target = few.items[0, row].tolist(), int(few.targets[row])
        others = [i for i in shown if i != target]
        names = data.titles
        outside = next(
            i for i in range(1, data.n_items + 1) if match_title(names[i], [names[s] for s in shown]) is None
        )
        plan.append(
            [
                f" {names[target].upper()}\nand {names[others[0]]}",
                f" {names[others[0]]}",
                f" {names[outside]}",
                f" {names[target]} or {names[others[0]]}",
            ][row]
        )
    one_draw = replace(few, items=few.items[:1])

    def write(prefix, rows, limit, stop):
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in plan]

    monkeypatch.setattr(candidate_eval, "write_texts", write)
    monkeypatch.setattr(candidate_eval, "prefixes", in_order)
    choices = by_language(context(lister), one_draw)["generation"]
    assert choices.hits.tolist() == [[True, False, False, False]]
    assert choices.valid.tolist() == [[True, True, False, False]]
    assert choices.figures()["HitRatio@1"]["mean"] == 0.25
    assert choices.figures()["ValidRatio"]["mean"] == 0.5
    assert choices.figures()["HitRatio@1 valid"]["mean"] == 0.5
    assert [w.verdict for w in choices.written] == ["right", "wrong", "invalid", "invalid"]
    assert [w.text for w in choices.written] == plan
    assert "Picked:" in choices.written[0].prompt and data.titles[few.targets[0]] in choices.written[0].prompt


def in_order(c, sample_ids, examples, *_):
    """`prefixes` without sorting by length."""
    h_seq = c.source.encoder.h_seq(c.source.data.histories(sample_ids))
    with c.model.gates.use(c.model.gate(h_seq)):
        yield np.arange(len(examples)), SharedPrefix(c.model, collate(examples), True)


def test_a_teacher_of_lists_learns_to_answer_with_a_candidate(lister, candidates):
    ways = lister.choose(candidates)
    assert set(ways) == {"generation", "likelihood", "frozen_sasrec"}
    for choices in ways.values():
        assert choices.hits.shape == choices.valid.shape == (2, 14)
        assert not (choices.hits & ~choices.valid).any()
    assert len(ways["generation"].written) == 8 and not ways["likelihood"].written
    scores = lister.encoder.log_probabilities(lister.data.histories(candidates.sample_ids)).numpy()
    for draw, items in enumerate(candidates.items):
        picked = items[np.arange(14), np.take_along_axis(scores, items - 1, axis=1).argmax(axis=1)]
        np.testing.assert_array_equal(ways["frozen_sasrec"].hits[draw], picked == candidates.targets)


def test_a_teacher_without_lists_is_asked_without_one(trained, candidates):
    """Item scores restricted to the candidates, and the likelihood of titles behind the bare prompt."""
    teacher, _ = trained
    ways = teacher.choose(candidates)
    assert set(ways) == {"likelihood", "item_scores", "frozen_sasrec"}
    ids = candidates.sample_ids
    rows = teacher.rank("test", ids, teacher.data.n_items)
    full = np.empty((len(ids), teacher.data.n_items), np.float32)
    np.put_along_axis(full, rows.rankings - 1, rows.scores, axis=1)
    for draw, items in enumerate(candidates.items):
        picked = items[np.arange(14), np.take_along_axis(full, items - 1, axis=1).argmax(axis=1)]
        np.testing.assert_array_equal(ways["item_scores"].hits[draw], picked == candidates.targets)
    for row in (0, 8):
        prompt = teacher.builder.build(teacher.data.histories(ids[row : row + 1])[0])
        for draw, items in enumerate(candidates.items[:, row]):
            best = items[likelihoods(teacher, int(ids[row]), prompt, items).argmax()]
            assert ways["likelihood"].hits[draw, row] == (best == candidates.targets[row])
    part = by_item_scores(context(teacher, 3), some(candidates, np.array([6, 2])))
    np.testing.assert_array_equal(part.hits, ways["item_scores"].hits[:, [6, 2]])


def test_a_plain_teacher_is_asked_for_its_scores(demo_data, candidates):
    from tests.teacher.conftest import compose_teacher

    knn = KnnTeacher(compose_teacher("teacher=knn"), demo_data)
    knn.prepare(None)
    hits = knn.choose(candidates)["scores"].hits
    scores = knn.score_all(candidates.sample_ids)
    for draw, items in enumerate(candidates.items):
        own = scores[np.arange(14), candidates.targets - 1]
        ahead = (np.take_along_axis(scores, items - 1, axis=1) >= own[:, None]).sum(axis=1)
        np.testing.assert_array_equal(hits[draw], ahead == 1)


def test_a_context_too_short_for_the_list_is_named(lister, candidates, monkeypatch):
    longest = max(len(e.ids) for e in prompts(lister, candidates))
    monkeypatch.setattr(lister.builder, "context", longest // 2)
    with pytest.raises(UserError, match=r"at most \d+, the LLM's context.*teacher\.prompt"):
        by_language(context(lister), candidates)


TITLES = [
    "Alien",
    "Aliens",
    "Alien 3",
    "The Thing (1982)",
    "Thing",
    "",
    "  ",
    "Red Sun",
    "Sun Rise Again",
    "M",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Alien", 0),
        ("Aliens", 1),  # exact before the substring "Alien"
        (" aLIENS \nand more", 1),  # case, spaces, first line only
        ("Alien 3", 2),
        ("I would pick Alien 3.", 2),  # the longest of "Alien", "Alien 3" (and of "M": none)
        ("the thing (1982)", 3),
        ("The  Thing   (1982)", 3),
        ("The Thing (1982", 4),  # cut short: only "Thing" is whole
        ("Alien or Thing", None),  # two answers
        ("Aliens and Alien", None),  # "Alien" stands by itself, too
        ("Aliens, Aliens", 1),  # twice the same is one answer
        ("red sun rise again", 8),  # overlapping: the longer one
        ("", None),
        ("\nAlien", None),  # the first line is empty
        ("   ", None),  # no empty title
        ("same else", 9),  # a one-letter title is still a title, also inside a word
        ("nothing", 4),
        ("something", None),  # "Thing" and, outside of it, "M"
        ("a word", None),
    ],
)
def test_the_title_that_a_text_names(text, expected):
    assert match_title(text, TITLES) == expected


def test_equal_lengths_that_overlap_are_two_answers():
    assert match_title("abc bcd", ["xabc", "abc b", "c bcd"]) is None
    assert match_title("abc bcd", ["abc", "bcd"]) is None


def test_a_shorter_title_beside_a_longer_one_counts():
    # "B" lies outside of the span that "A B C" claims
    assert match_title("a b c then b", ["A B C", "B"]) is None
    assert match_title("a b c then", ["A B C", "B"]) == 0
