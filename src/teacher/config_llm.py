"""Settings of the language model and of what is trained inside it (`conf/teacher/llm/*.yaml`, `lora`, `gate`)."""

from __future__ import annotations

from typing import Any

from src.core.config import config_group, determining, setting
from src.core.paths import resolve
from src.teacher.llm_files import files_hash


@config_group
class TinyLLMConfig:
    """The embedded LLM: a small Llama, pre-trained as a plain language model on the training split."""

    vocab_size: int = setting("entries of the byte-level BPE vocabulary", ge=300)
    hidden_size: int = setting("width H", ge=8)
    intermediate_size: int = setting("width of the MLP", ge=8)
    layers: int = setting("number of blocks", ge=1)
    heads: int = setting("attention heads", ge=1)
    context: int = setting("longest input in tokens", ge=16)
    epochs: int = setting("passes over the training split's text", ge=0)
    samples: int = setting("training samples read as text in each pass, drawn anew", ge=1)
    batch_size: int = setting("texts per pre-training step", ge=1)
    lr: float = setting("peak learning rate of pre-training (AdamW, 5 % warm-up, cosine)", gt=0.0)

    def problems(self) -> list[str]:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            return [
                f"tiny.hidden_size={self.hidden_size}, heads={self.heads}: expected heads of equal, even width"
            ]
        return []


@config_group
class LLMConfig:
    """`conf/teacher/llm/*.yaml`: the causal language model behind the teacher."""

    kind: str = setting("where the weights come from", choices=("tiny", "local", "gguf", "hub"))
    path: str | None = setting(
        "folder in Hugging Face layout (local), GGUF file (gguf) or name on the hub (hub)"
    )
    revision: str | None = setting("commit, tag or branch on the hub; null: the default branch")
    merge_adapter: bool = setting("local: add the adapter that lies beside the weights to them")
    trust_remote_code: bool = setting("run Python code that comes with the weights")
    dtype: str = setting("type of the frozen weights", choices=("float32", "bfloat16", "float16"))
    attention: str = setting("attention implementation", choices=("sdpa", "eager", "flash_attention_2"))
    quantization: str = setting("base weights in 4 bit (bitsandbytes, GPU only)", choices=("none", "4bit"))
    gradient_checkpointing: bool = setting("recompute activations in backward", in_fingerprint=False)
    compile: bool = setting("torch.compile the blocks: minutes of compilation once", in_fingerprint=False)
    tiny: TinyLLMConfig | None = setting(
        "sizes and pre-training of the embedded model; null for the others", when={"kind": ("tiny",)}
    )

    def problems(self) -> list[str]:
        """A key that this kind of model does not read is refused: it would be ignored without a word."""
        out = []
        if (self.kind == "tiny") != (self.tiny is not None):
            out.append(f"llm.tiny: found {'sizes' if self.tiny else 'null'} with kind={self.kind}")
        if self.kind != "tiny" and not self.path:
            wanted = {"local": "a folder", "gguf": "a file", "hub": "a model name"}[self.kind]
            out.append(f"llm.path: found null, expected {wanted}")
        if self.kind == "tiny" and self.path is not None:
            expected = "null (teacher/llm=local, gguf or hub reads a path)"
            out.append(f"llm.path: found {self.path!r} with kind=tiny, expected {expected}")
        read = {
            "revision": ("hub",),
            "merge_adapter": ("local",),
            "trust_remote_code": ("local", "hub"),
            "quantization": ("local", "hub"),
        }
        for name, kinds in read.items():
            value = getattr(self, name)
            if self.kind not in kinds and value not in (None, False, "none"):
                unset = {"revision": "null", "quantization": "none"}.get(name, "false")
                out.append(f"llm.{name}: found {value!r} with kind={self.kind}, expected {unset}")
        return out

    def identity(self) -> dict[str, Any]:
        """What determines results: the files of a local model count by their hash, not by where they lie."""
        parts = determining(self)
        if self.kind in ("local", "gguf"):
            parts["path"] = files_hash(resolve(str(self.path)))
        return parts


@config_group
class LoraSettings:
    """One LoRA of total rank r, cut into K experts of rank r / K (reference/ilora.md)."""

    rank: int = setting("total rank r", ge=1)
    experts: int = setting("experts K that share the rank", ge=1)
    alpha: float = setting("LoRA alpha; with a uniform gate the scale is alpha / r", gt=0.0)
    dropout: float = setting("dropout before A", ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = setting("names of the adapted linears; null: all linears of the blocks")

    def problems(self) -> list[str]:
        if self.rank % self.experts:
            return [
                f"lora: found rank={self.rank} and experts={self.experts}, expected rank divisible by experts"
            ]
        return []


@config_group
class GateConfig:
    """h_seq -> softmax weights of the experts."""

    kind: str = setting("router", choices=("linear", "mlp", "resnet1d", "uniform"))
    hidden: int = setting("hidden width of `mlp`", ge=1, when={"kind": ("mlp",)})
    temperature: float = setting("softmax temperature", gt=0.0, when={"kind": ("linear", "mlp", "resnet1d")})
