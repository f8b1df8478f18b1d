"""`teacher.llm.compile`: the same numbers, few compilations, names untouched, refused without a compiler."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from src.core.errors import UserError
from src.teacher import llm as llm_module
from src.teacher.config import model_fingerprint
from src.teacher.config_parts import LoraSettings
from src.teacher.gating import GateControl
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.llm import add_lora, backbone, compile_blocks, find_blocks, require_compiler
from src.teacher.llm_loading import load_llm

LORA = LoraSettings(rank=8, experts=4, alpha=32.0, dropout=0.0, targets=None)
WHEN = [(8, 17), (8, 11), (5, 23), (3, 9)]  # rows and tokens; the first has as many rows as the rank


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled before, and PyTorch's settings as they were."""
    torch._dynamo.reset()
    counters.clear()
    settings = torch._dynamo.config
    kept = {k: getattr(settings, k) for k in ("recompile_limit", "force_nn_module_property_static_shapes")}
    with settings.patch(kept):
        yield
    torch._dynamo.reset()


def need_compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++) on this machine")


def adapted(config) -> tuple[torch.nn.Module, GateControl]:
    torch.manual_seed(1)
    llm = add_lora(load_llm(config).model, LORA)
    for name, p in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    gates = GateControl(LORA.experts)
    gates.attach(llm)
    return llm, gates


def passes(llm, gates) -> list[torch.Tensor]:
    """States and gradients of training passes, then states of evaluation, gated and uniform."""
    generator, out = torch.Generator().manual_seed(2), []
    width = llm.get_input_embeddings().weight.shape[1]
    for rows, tokens in WHEN:
        x = torch.randn(rows, tokens, width, generator=generator).requires_grad_()
        gate = torch.softmax(torch.randn(rows, 4, generator=generator), dim=-1).requires_grad_()
        llm.zero_grad(set_to_none=True)
        llm.train()
        with gates.use(gate):
            states = backbone(llm)(inputs_embeds=x, use_cache=False).last_hidden_state
            states.pow(2).mean().backward()
        out += [states.detach(), x.grad, gate.grad, *(p.grad for p in llm.parameters() if p.requires_grad)]
        llm.eval()
        with torch.no_grad():
            for within in (gates.use(gate), gates.uniform()):
                with within:
                    out.append(backbone(llm)(inputs_embeds=x.detach(), use_cache=False).last_hidden_state)
    return out


@pytest.fixture(scope="module")
def llm_config(make_config, folder_of, teacher_roots):
    return make_config("teacher/llm=local", f"teacher.llm.path={folder_of('llama')}").llm


@pytest.mark.parametrize(
    ("backend", "checkpointing"),
    [
        ("eager", False),  # what torch.compile reads of the blocks, hooks and gate, without kernels
        pytest.param("eager", True, marks=pytest.mark.slow),
        pytest.param("inductor", False, marks=pytest.mark.slow),
    ],
)
def test_one_code_for_all_blocks_and_batches(llm_config, backend, checkpointing):
    if backend == "inductor":
        need_compiler()
    config = replace(llm_config, gradient_checkpointing=checkpointing)
    expected = passes(*adapted(config))
    llm, gates = adapted(config)
    names = list(llm.state_dict())
    compile_blocks(llm, gates, backend)
    counters.clear()  # the probe of the compiler is a graph, too
    assert list(llm.state_dict()) == names
    for found, wanted in zip(passes(llm, gates), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    # training, evaluation gated and uniform: not one for every batch, nor for each of the two blocks
    assert len(find_blocks(llm)) == 2 and counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]
    with pytest.raises(RuntimeError, match="forward pass outside a gate"):
        backbone(llm)(inputs_embeds=torch.randn(2, 5, 32), use_cache=False)


@pytest.mark.slow
def test_a_compiled_teacher_is_the_same_teacher(make_config, demo_data, teacher_roots):
    """Inductor's kernels: validation and scores after training, from the same seeds."""
    need_compiler()
    found = {}
    for on in (False, True):
        config = make_config(
            "teacher.objective.lm=0.5", "teacher.train.samples=96", f"teacher.llm.compile={str(on).lower()}"
        )
        # compile is no part of the fingerprint: another name, so that nothing is reused
        teacher = IloraTeacher(replace(config, name=f"compiled_{on}"), demo_data)
        report = teacher.prepare(None)
        assert not report["reused"]
        ids = demo_data.splits["test"][:20]
        found[on] = report["validation"], teacher.rank("test", ids, 20).target_scores
    assert counters["stats"]["unique_graphs"] > 0
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-4)
    np.testing.assert_allclose(found[True][1], found[False][1], atol=1e-3)


def test_without_a_compiler_it_is_refused(make_config, demo_data, teacher_roots, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("no working C++ compiler found\nmore lines")

    monkeypatch.setattr(llm_module.torch, "compile", lambda *a, **k: broken)
    with pytest.raises(UserError) as error:
        require_compiler(torch.device("cpu"))
    line = str(error.value)
    assert "\n" not in line and "teacher.llm.compile=true" in line and "no working C++ compiler found" in line
    teacher = IloraTeacher(make_config("teacher.llm.compile=true"), demo_data)
    with pytest.raises(UserError, match="teacher.llm.compile=true, but torch.compile fails on cpu"):
        teacher.prepare(None)


def test_it_changes_no_fingerprint(make_config):
    off, on = make_config(), make_config("teacher.llm.compile=true")
    assert on.llm.compile and model_fingerprint(off, "d") == model_fingerprint(on, "d")
