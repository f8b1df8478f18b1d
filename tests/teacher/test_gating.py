"""The gated LoRA layers, the routers and the schedule against numbers of the official code."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from src.core.errors import UserError
from src.core.paths import ROOT
from src.teacher.config_parts import GateConfig
from src.teacher.gating import GateControl, ResNet1d, SoftmaxRouter, UniformRouter, build_router, refuse_merge
from src.teacher.ilora_model import ItemProjector
from src.teacher.training_step import hybrid_probability

ORACLES = ROOT / "tests" / "oracles"


def oracle(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(ORACLES / name, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.Tensor]:
    return oracle("ilora_parts.safetensors")[0]


def gated_linear(
    inputs: int, outputs: int, rank: int, experts: int, alpha: float, bias: bool = False, dtype=torch.float32
) -> tuple[nn.Module, GateControl, nn.Module]:
    base = nn.ModuleDict({"layer": nn.Linear(inputs, outputs, bias=bias)}).to(dtype)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["layer"]))
    control = GateControl(experts)
    control.attach(model)
    return model, control, model.base_model.model["layer"].to(dtype)


@pytest.mark.parametrize(
    ("case", "rank", "experts", "alpha", "tolerance"),
    [
        ("lin_f32_r8_k4_bias", 8, 4, 32.0, 1e-6),
        ("lin_f32_r16_k8", 16, 8, 16.0, 1e-6),
        ("lin_f64_r8_k4", 8, 4, 32.0, 1e-14),
    ],
)
def test_gated_linear_meets_the_official_layer(parts, case, rank, experts, alpha, tolerance):
    o = {k.split("/")[1]: v for k, v in parts.items() if k.startswith(case + "/")}
    outputs, inputs = o["W"].shape
    _, control, layer = gated_linear(inputs, outputs, rank, experts, alpha, "bias" in o, o["W"].dtype)
    with torch.no_grad():
        layer.base_layer.weight.copy_(o["W"])
        if "bias" in o:
            layer.base_layer.bias.copy_(o["bias"])
        layer.lora_A["default"].weight.copy_(o["A"])
        layer.lora_B["default"].weight.copy_(o["Bm"])
    x, gate = o["x"].clone().requires_grad_(), o["gate"][:, 0].clone().requires_grad_()
    with control.use(gate):
        y = layer(x)
        (y * o["v"]).sum().backward()
    found = {
        "y": y,
        "dx": x.grad,
        "dgate": gate.grad[:, None],
        "dA": layer.lora_A["default"].weight.grad,
        "dB": layer.lora_B["default"].weight.grad,
    }
    for name, value in found.items():
        assert (value - o[name]).abs().max() <= tolerance * o[name].abs().max(), name


def test_tiny_llama_meets_the_official_model():
    o, metadata = oracle("ilora_tiny_llama.safetensors")
    model = LlamaForCausalLM(LlamaConfig(**json.loads(metadata["config"])))
    model.load_state_dict({k.removeprefix("base/"): v for k, v in o.items() if k.startswith("base/")})
    model.requires_grad_(False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules=names))
    control = GateControl(4)
    assert len(control.attach(adapted)) == 14
    weights = dict(adapted.base_model.model.named_parameters())
    lora = {k.removeprefix("lora/"): v for k, v in o.items() if k.startswith("lora/")}
    with torch.no_grad():
        for name, value in lora.items():
            weights[name].copy_(value)
    gate = o["in/gate"][:, 0].clone().requires_grad_()
    with control.use(gate):
        out = adapted.base_model.model(
            inputs_embeds=o["in/inputs_embeds"], attention_mask=o["in/attention_mask"], labels=o["in/labels"]
        )
        out.loss.backward()
    real = o["in/attention_mask"].bool()
    assert (out.logits - o["out/logits"])[real].abs().max() <= 1e-6 * o["out/logits"].abs().max()
    assert abs(float(out.loss) - float(o["out/loss"])) <= 1e-6 * float(o["out/loss"])
    assert (gate.grad - o["grad/gate"][:, 0]).abs().max() <= 1e-5 * o["grad/gate"].abs().max()
    for name in lora:
        expected = o[f"grad/{name}"]
        assert (weights[name].grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_uniform_gate_is_plain_lora_and_gates_of_users_differ():
    torch.manual_seed(0)
    model, control, layer = gated_linear(12, 9, 8, 4, 16.0)
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, 5, 12)
    plain = (
        layer.base_layer(x)
        + 16.0 / 8 * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    )
    with control.uniform():
        by_name = layer(x)
    with control.use(torch.full((3, 4), 0.25)):
        by_value = layer(x)
    torch.testing.assert_close(by_name, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_value, plain, atol=1e-5, rtol=1e-5)
    # One user's gate changes that user's rows and no others.
    gate = torch.full((3, 4), 0.25)
    gate[1] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    with control.use(gate):
        moved = layer(x)
    assert (moved[1] - plain[1]).abs().max() > 1e-2
    torch.testing.assert_close(moved[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=1e-5)


def test_gate_must_fit_the_batch_and_is_restored():
    _, control, layer = gated_linear(6, 6, 4, 2, 8.0)
    x = torch.randn(4, 3, 6)
    with pytest.raises(RuntimeError, match="outside a gate"):
        layer(x)
    with pytest.raises(RuntimeError, match="2 rows, the batch 4"), control.use(torch.full((2, 2), 0.5)):
        layer(x)
    with pytest.raises(ValueError, match="expected"), control.use(torch.full((4, 3), 1 / 3)):
        pass
    with pytest.raises(KeyError), control.use(torch.full((4, 2), 0.5)):
        raise KeyError
    with pytest.raises(RuntimeError, match="outside a gate"):
        layer(x)


def test_flattened_rows_get_the_gate_of_their_sequence():
    """OPT calls its MLP with [B*T, H]."""
    torch.manual_seed(0)
    _, control, layer = gated_linear(6, 5, 4, 2, 8.0)
    nn.init.normal_(layer.lora_B["default"].weight)
    x, gate = torch.randn(3, 4, 6), torch.softmax(torch.randn(3, 2), -1)
    with control.use(gate):
        torch.testing.assert_close(layer(x.view(12, 6)).view(3, 4, 5), layer(x))


def test_merging_is_refused_with_the_reason():
    model, _, layer = gated_linear(6, 6, 4, 2, 8.0)
    refuse_merge(model)
    for merge in (
        model.merge_and_unload,
        model.base_model.merge_and_unload,
        model.merge_adapter,
        layer.merge,
    ):
        with pytest.raises(UserError, match="one gate for all users"):
            merge()


def router_name(name: str) -> str:
    """The official router's parameter name in ours."""
    name = name.replace("gate.fc", "out")
    if name.startswith("layer"):
        stage, block, rest = name.split(".", 2)
        return f"blocks.{3 * (int(stage[5]) - 1) + int(block)}." + rest.replace("bn", "norm")
    return name.replace("conv1", "conv").replace("bn1", "norm")


def test_resnet1d_router_meets_the_official_one(parts):
    router = SoftmaxRouter(ResNet1d(4), 1.0)
    prefix = "router/state/"
    router.logits.load_state_dict(
        {router_name(k.removeprefix(prefix)): v for k, v in parts.items() if k.startswith(prefix)}
    )
    assert sum(p.numel() for p in router.parameters()) == 90_772
    h = parts["router/h"][:, 0].clone().requires_grad_()
    router.eval()
    torch.testing.assert_close(router(h), parts["router/gate_eval_default_stats"][:, 0], atol=1e-6, rtol=0)
    router.train()
    gate = router(h)
    torch.testing.assert_close(gate, parts["router/gate_train"][:, 0], atol=1e-6, rtol=0)
    (gate * parts["router/w"][:, 0]).sum().backward()
    torch.testing.assert_close(h.grad, parts["router/dh"][:, 0], atol=1e-6, rtol=1e-5)
    weights = dict(router.logits.named_parameters())
    for key in (k for k in parts if k.startswith("router/grad/")):
        expected = parts[key]
        found = weights[router_name(key.removeprefix("router/grad/"))].grad
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), key
    buffers = dict(router.logits.named_buffers())
    prefix = "router/buffers_after_1_train_forward/"
    for key in (k for k in parts if k.startswith(prefix)):
        torch.testing.assert_close(
            buffers[router_name(key.removeprefix(prefix))], parts[key], atol=1e-6, rtol=1e-5
        )
    router.eval()
    torch.testing.assert_close(
        router(h), parts["router/gate_eval_after_1_train_forward"][:, 0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "resnet1d", "uniform"])
def test_routers_give_weights_per_user(kind):
    torch.manual_seed(0)
    router = build_router(GateConfig(kind, 16, 1.0), 64, 4).eval()
    gate = router(torch.randn(5, 64))
    assert gate.shape == (5, 4)
    torch.testing.assert_close(gate.sum(1), torch.ones(5))
    assert (gate > 0).all()
    assert ((gate[0] - gate[1]).abs().max() > 1e-4) == (kind != "uniform")
    assert isinstance(build_router(GateConfig(kind, 16, 1.0), 64, 1), UniformRouter)


def test_projector_meets_the_official_one_and_matches_scale(parts):
    projector = ItemProjector(64, 96)
    prefix = "projector/state/mlp_proj."
    projector.load_state_dict({k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)})
    torch.testing.assert_close(projector(parts["projector/x"]), parts["projector/y"], atol=1e-6, rtol=1e-5)
    projector.match_scale(parts["projector/x"], 0.02)
    assert float(projector(parts["projector/x"]).pow(2).mean().sqrt()) == pytest.approx(0.02, rel=1e-5)


def test_curriculum_rises_over_the_whole_training():
    assert hybrid_probability(0, 10, "linear") == 0.0
    assert hybrid_probability(5, 10, "linear") == 0.5
    assert hybrid_probability(0, 10, "none") == 1.0
