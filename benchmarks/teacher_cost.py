"""What the gate costs over plain LoRA, what padding costs, and a 7B base on a GPU; ratios come from one run.

    python -m benchmarks.teacher_cost [--part layer|step|compile|padding|base] [--rounds 31] [--threads 1]

layer: one linear forward + backward, batch 8, 256 tokens, fp32: gated LoRA (src/teacher/gating.py) and the official
    form (expert outputs [B, T, K, out] kept, reference: arXiv 2408.10159) against plain peft LoRA; time and the
    bytes that autograd keeps. Required of the gated layer: <= 1.05x the time, <= 1.02x the bytes.
step: a whole training step (forward, backward, Adam) of a small Llama, gated against ungated: <= 1.05x.
compile: the same step and an evaluation pass, blocks compiled (teacher.llm.compile) against as they are, batches of
    changing length; the compilation itself beside it. Only when asked for: it takes minutes.
padding: real tokens/s of such steps, batches padded to their longest and grouped by length against pad-to-512.
base: tokens/s, peak memory and model FLOP utilisation of a random Llama-2-7B shape in bf16 with gradient
    checkpointing, micro-batch 8; without a GPU the same code in a tiny shape, whose figures mean nothing.

Variants take turns; a ratio is the median over rounds of the ratio within a round, so that other load on the machine
hits both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.measuring import in_turns, ratio
from src.core.logging import get_logger, setup_logging
from src.core.memory import peak_memory
from src.teacher.gating import GateControl, ResNet1d
from src.teacher.ilora_model import ItemProjector

SEVEN = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
EXPERTS, ALPHA = 4, 32.0
log = get_logger("benchmark")


class OfficialForm(nn.Module):
    """y = W0 x + s * sum_k g_k (B_k A_k x), every expert's output kept: written from the equation."""

    def __init__(self, base: nn.Linear, rank: int, experts: int, alpha: float):
        super().__init__()
        self.base, self.rho = base, rank // experts
        self.scale = alpha / self.rho
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Parameter(torch.randn(experts, self.rho, base.out_features) * 0.01)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        u = self.down(x).unflatten(-1, (-1, self.rho))  # [B, T, K, rho]
        experts = torch.einsum("btkr,kro->btko", u, self.up)
        return self.base(x) + self.scale * (experts * gate[:, None, :, None]).sum(dim=2)


def saved_bytes(forward: Callable[[], Tensor], ignore: set[int]) -> int:
    """Bytes that autograd keeps for backward, each storage once; `ignore` holds storages of weights and input."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignore:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = forward()  # alive, so that no address is used twice
    del kept
    return sum(seen.values())


def interleaved(
    variants: dict[str, Callable[[], None]], rounds: int, base: str
) -> dict[str, tuple[float, float]]:
    """{name: (median seconds, median ratio to `base` within a round)}."""
    times = in_turns(variants, rounds, time.perf_counter)
    return {name: (statistics.median(times[name]), ratio(times, name, base)) for name in variants}


def layer(
    inputs: int, outputs: int, rank: int, rounds: int, batch: int = 8, tokens: int = 256
) -> tuple[float, float]:
    """Time and saved bytes of one adapted linear; returns the gated layer's two ratios."""
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, inputs, requires_grad=True)
    gate = torch.softmax(torch.randn(batch, EXPERTS), dim=-1).requires_grad_()

    def adapted() -> nn.Module:
        base = nn.ModuleDict({"layer": nn.Linear(inputs, outputs, bias=False)})
        return get_peft_model(base, LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["layer"]))

    plain, gated = adapted(), adapted()
    control = GateControl(EXPERTS)
    control.attach(gated)
    official = OfficialForm(
        nn.Linear(inputs, outputs, bias=False).requires_grad_(False), rank, EXPERTS, ALPHA
    )
    plain_layer, gated_layer = plain.base_model.model["layer"], gated.base_model.model["layer"]

    calls: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain_layer(x),
        "gated": lambda: gated_layer(x),
        "official": lambda: official(x, gate),
    }
    modules = {"plain": plain, "gated": gated, "official": official}
    dy = torch.randn(batch, tokens, outputs)

    def within(name: str) -> AbstractContextManager:
        return control.use(gate) if name == "gated" else nullcontext()

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            for tensor in (x, gate, *modules[name].parameters()):
                tensor.grad = None
            with within(name):
                calls[name]().backward(dy)

        return run

    kept = {}
    for name, forward in calls.items():
        own = {p.untyped_storage().data_ptr() for p in modules[name].parameters()}
        with within(name):
            kept[name] = saved_bytes(forward, own)
    timed = interleaved({name: step(name) for name in calls}, rounds, "plain")
    memory = {name: kept[name] / kept["plain"] for name in calls}
    for name in ("gated", "official"):
        log.info(
            "layer %d->%d, r %d: %s %.1f ms, %.3fx the time of plain LoRA (%.1f ms), %.3fx the saved bytes (%.2f MB)",
            inputs, outputs, rank, name, 1e3 * timed[name][0], timed[name][1], 1e3 * timed["plain"][0],
            memory[name], kept["plain"] / 1e6,
        )  # fmt: skip
    return timed["gated"][1], memory["gated"]


def llama(
    hidden: int, layers: int, device: str = "cpu", dtype: torch.dtype = torch.float32, **more: int
) -> nn.Module:
    """A random frozen Llama on `device`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 4096, "intermediate_size": hidden * 11 // 4, "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32, "max_position_embeddings": 512,
    } | more  # fmt: skip
    config = LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, **sizes)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlamaForCausalLM(config).requires_grad_(False)
        finally:
            torch.set_default_dtype(before)


class Trained:
    """A Llama with LoRA on its seven linears, gated or not, and one optimizer."""

    def __init__(self, model: nn.Module, gated: bool):
        self.model = get_peft_model(model, LoraConfig(r=8, lora_alpha=ALPHA, target_modules=SEVEN)).train()
        self.device = next(model.parameters()).device
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.control = GateControl(EXPERTS) if gated else None
        if self.control is not None:
            self.router = nn.Linear(64, EXPERTS).to(self.device)
            self.control.attach(self.model)
            params += list(self.router.parameters())
        self.optimizer = torch.optim.Adam(params, lr=1e-4)

    def step(self, ids: Tensor, labels: Tensor, h_seq: Tensor) -> None:
        within: AbstractContextManager = nullcontext()
        if self.control is not None:
            within = self.control.use(torch.softmax(self.router(h_seq), dim=-1))
        with within:
            self.model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def training_step(hidden: int, layers: int, rounds: int) -> float:
    """A small Llama's whole step; returns gated / plain."""
    sides = {}
    for name in ("plain", "gated"):
        torch.manual_seed(0)
        sides[name] = Trained(llama(hidden, layers), name == "gated")
    ids, h_seq = torch.randint(3, 4096, (8, 256)), torch.randn(8, 64)
    timed = interleaved({n: lambda s=s: s.step(ids, ids, h_seq) for n, s in sides.items()}, rounds, "plain")
    log.info(
        "step: Llama of width %d, %d layers, batch 8 x 256 tokens: plain %.0f ms, gated %.0f ms, ratio %.3fx",
        hidden, layers, 1e3 * timed["plain"][0], 1e3 * timed["gated"][0], timed["gated"][1],
    )  # fmt: skip
    return timed["gated"][1]


def compilation(hidden: int, layers: int, rounds: int, batch: int = 8) -> float:
    """Compiled blocks against the same blocks as they are, gated; returns the ratio of the training steps."""
    from src.teacher.llm import compile_blocks

    sides = {}
    for name in ("as is", "compiled"):
        torch.manual_seed(0)
        sides[name] = Trained(llama(hidden, layers), gated=True)
    compile_blocks(sides["compiled"].model, sides["compiled"].control)
    lengths = np.random.default_rng(0).integers(64, 257, size=16).tolist()
    batches = [(torch.randint(3, 4096, (batch, n)), torch.randn(batch, 64)) for n in lengths]
    turn = dict.fromkeys(sides, 0)

    def next_batch(name: str) -> tuple[Tensor, Tensor]:
        turn[name] += 1  # both sides see the same lengths in the same rounds
        return batches[turn[name] % len(batches)]

    def train(name: str) -> None:
        ids, h_seq = next_batch(name)
        sides[name].step(ids, ids, h_seq)

    @torch.no_grad()
    def evaluate(name: str) -> None:
        ids, h_seq = next_batch(name)
        side = sides[name]
        with side.control.use(torch.softmax(side.router(h_seq), dim=-1)):
            side.model(input_ids=ids, use_cache=False)

    ratios = {}
    for what, call, training in (("training step", train, True), ("evaluation pass", evaluate, False)):
        for side in sides.values():
            side.model.train(training)
        started = time.perf_counter()
        for _ in range(3):
            call("compiled")
        first = time.perf_counter() - started
        turn.update(dict.fromkeys(turn, 0))
        timed = interleaved({n: lambda n=n, c=call: c(n) for n in sides}, rounds, "as is")
        ratios[what] = timed["compiled"][1]
        log.info(
            "compile: %s of a Llama of width %d, %d layers, batch %d x 64-256 tokens: as is %.0f ms, compiled %.0f ms, "
            "ratio %.3fx; the first three took %.0f s",
            what, hidden, layers, batch, 1e3 * timed["as is"][0], 1e3 * timed["compiled"][0], ratios[what], first,
        )  # fmt: skip
    return ratios["training step"]


def padding(hidden: int, layers: int, rounds: int, limit: int = 512) -> float:
    """Real tokens/s: 64 prompts in micro-batches of 8; returns grouped / pad-to-512."""
    rng = np.random.default_rng(0)
    # 3 to 10 history items of 5 to 17 tokens around an instruction: what conf/teacher/prompt makes of ML-100K.
    lengths = [30 + int(rng.integers(5, 18, rng.integers(3, 11)).sum()) for _ in range(64)]
    side = Trained(llama(hidden, layers), gated=True)

    def pass_over(groups: list[list[int]], fixed: int | None) -> Callable[[], None]:
        def run() -> None:
            for group in groups:
                ids = torch.randint(3, 4096, (len(group), fixed or max(group)))
                labels = ids.clone()
                for row, length in enumerate(group):
                    labels[row, length:] = -100
                side.step(ids, labels, torch.randn(len(group), 64))

        return run

    def cut(values: list[int]) -> list[list[int]]:
        return [values[i : i + 8] for i in range(0, len(values), 8)]

    variants = {
        "pad to 512": pass_over(cut(lengths), limit),
        "pad to longest": pass_over(cut(lengths), None),
        "longest, grouped": pass_over(cut(sorted(lengths)), None),
    }
    timed = interleaved(variants, rounds, "pad to 512")
    for name, (seconds, share) in timed.items():
        log.info(
            "padding: %s: %.0f real tokens/s, %.2fx (mean length %.0f)",
            name, sum(lengths) / seconds, 1 / share, np.mean(lengths),
        )  # fmt: skip
    return 1 / timed["longest, grouped"][1]


def base(rounds: int, peak_tflops: float) -> None:
    """A 7B shape on the GPU, or the same code in a tiny shape."""
    gpu = torch.cuda.is_available()
    tokens, rows = (256, 8) if gpu else (32, 2)
    if gpu:
        more = {
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        }
        model = llama(4096, 32, "cuda", torch.bfloat16, **more)
    else:
        log.info("base: no GPU: a tiny shape, to run the code only")
        model = llama(64, 2, "cpu", torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    matrices = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    side = Trained(model, gated=True)
    vocabulary, device = model.config.vocab_size, side.device
    ids, h_seq = torch.randint(3, vocabulary, (rows, tokens), device=device), torch.randn(
        rows, 64, device=device
    )
    side.step(ids, ids, h_seq)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        side.step(ids, ids, h_seq)
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    rate = rows * tokens / statistics.median(times)
    # Frozen weights: forward 2 and gradient of the activations 2 FLOP per weight and token; what checkpointing
    # computes again does not count as use.
    used = 4 * matrices * rate
    log.info(
        "base: %.2f G weights in matrices, micro-batch %d x %d tokens: %.0f tokens/s, %.2f TFLOP/s, MFU %s, peak %.2f GiB",
        matrices / 1e9, rows, tokens, rate, used / 1e12,
        f"{used / 1e12 / peak_tflops:.1%} of {peak_tflops:.0f} TFLOP/s" if gpu else "not given without a GPU",
        peak_memory(device) / 2**30,
    )  # fmt: skip


def parameters() -> float:
    """Trained parameters for a Llama-2-7B shape (nothing is allocated); returns their share of the base."""
    more = {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    model = llama(4096, 32, "meta", torch.bfloat16, **more)
    whole = sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=ALPHA, target_modules=SEVEN))
    parts = {
        "lora": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "projector": sum(p.numel() for p in ItemProjector(64, 4096).parameters()),
        "gate (resnet1d)": sum(p.numel() for p in ResNet1d(EXPERTS).parameters()),
    }
    share = sum(parts.values()) / whole
    log.info("parameters: base %d, trained %s: %.3f %% of the base", whole, parts, 100 * share)
    return share


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("layer", "step", "compile", "padding", "base"))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-tflops", type=float, default=312.0, help="of the GPU in bf16 (A100: 312)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup_logging(None)
    failed = []
    if parameters() >= 0.01:
        failed.append("trained parameters: 1 % of the base or more")
    if args.part in (None, "layer"):
        for outputs in (2048, 5632):
            for rank in (8, 16):
                seconds, saved = layer(2048, outputs, rank, args.rounds)
                if seconds > 1.05:
                    failed.append(f"layer 2048->{outputs}, r {rank}: {seconds:.3f}x the time")
                if saved > 1.02:
                    failed.append(f"layer 2048->{outputs}, r {rank}: {saved:.3f}x the saved bytes")
    if args.part in (None, "step") and (step := training_step(256, 4, args.rounds)) > 1.05:
        failed.append(f"step: {step:.3f}x")
    if args.part == "compile":
        compilation(256, 4, args.rounds)
    if args.part in (None, "padding"):
        padding(128, 2, max(3, args.rounds // 6))
    if args.part in (None, "base"):
        base(max(3, args.rounds // 3), args.peak_tflops)
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
