"""Settings of a teacher's parts (`conf/teacher/{llm,prompt,train}` and the blocks of `conf/teacher/*.yaml`)."""

from __future__ import annotations

from typing import Any, ClassVar

from src.core.config import config_group, determining, setting
from src.core.paths import resolve
from src.teacher.llm_files import files_hash


@config_group
class TinyWordsConfig:
    """Pre-training that also reads sentences about the words of generated titles: what they have in common."""

    texts: int = setting("texts of three sentences read in each pass; they say nothing of users", ge=1)
    epochs: int = setting("passes", ge=0)
    samples: int = setting("training samples read beside them in each pass", ge=1)
    batch_size: int = setting("texts per pre-training step", ge=1)


@config_group
class TinyLLMConfig:
    """The embedded LLM: a small Llama, pre-trained as a plain language model on sentences and the training split."""

    vocab_size: int = setting("entries of the byte-level BPE vocabulary", ge=300)
    hidden_size: int = setting("width H", ge=8)
    intermediate_size: int = setting("width of the MLP", ge=8)
    layers: int = setting("number of blocks", ge=1)
    heads: int = setting("attention heads", ge=1)
    context: int = setting("longest input in tokens", ge=16)
    epochs: int = setting("passes over the training split's text", ge=0)
    samples: int = setting("training samples read as text in each pass (a new draw per pass)", ge=1)
    batch_size: int = setting("texts per pre-training step", ge=1)
    lr: float = setting("peak learning rate of pre-training (AdamW, 5 % warm-up, cosine)", gt=0.0)
    words: TinyWordsConfig = setting("instead, where the titles are generated ones (dataset=demo)")

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


@config_group
class Template:
    """One wording: `prefix` holds {history}; `choice` holds {candidates} and is used when there are any."""

    prefix: str = setting("instruction, {history}, and the cue that asks for the next item")
    choice: str = setting("text between prefix and answer that lists {candidates}")

    def problems(self) -> list[str]:
        return [
            f"{name}: found {text.count(slot)} times {slot}, expected once"
            for name, text, slot in (
                ("prefix", self.prefix, "{history}"),
                ("choice", self.choice, "{candidates}"),
            )
            if text.count(slot) != 1
        ]


@config_group
class PromptConfig:
    """`conf/teacher/prompt/*.yaml`. The prompt is prefix, then optionally a candidate list, then the answer."""

    mode: str = setting(
        "placeholders carry projected SASRec vectors (hybrid) or a neutral one (text)",
        choices=("hybrid", "text"),
    )
    chat: str = setting(
        "the tokenizer's chat template around the prompt: where it has one (auto), always or never",
        choices=("auto", "always", "never"),
    )
    candidates: int = setting("candidates listed before the answer, the target included; 0: no list", ge=0)
    entry: str = setting("how an item of a list is written: {title} and, last, {item} for the placeholder")
    separator: str = setting("text between two entries")
    item: str = setting("text whose last hidden state represents an item: {title} and, last, {item}")
    end: str = setting("what ends the answer, besides the tokenizer's end token")
    title_tokens: int | None = setting(
        "longer titles are cut to so many tokens, everywhere; null: as they are", ge=1
    )
    train: tuple[Template, ...] = setting("wordings for training, one drawn per sample")
    evaluation: Template = setting("the wording of validation, test and export")

    def problems(self) -> list[str]:
        out = [
            f"prompt.{name}: found {text!r}, expected {{title}} once and {{item}} at its end"
            for name, text in (("entry", self.entry), ("item", self.item))
            if text.count("{title}") != 1 or text.count("{item}") != 1 or not text.endswith("{item}")
        ]
        if self.candidates == 1:
            out.append("prompt.candidates: found 1, expected 0 or at least 2")
        if not self.train:
            out.append("prompt.train: found no wording, expected at least one")
        return out


@config_group
class ObjectiveConfig:
    """Weights of the two losses and the settings of the item read-out."""

    item: float = setting("weight of next-item cross-entropy over the catalogue", ge=0.0)
    lm: float = setting("weight of token cross-entropy on the target's title", ge=0.0)
    dim: int = setting("width D of user and item vectors", ge=2, when={"item": True})
    temperature: float = setting("divides the scores user . item", gt=0.0, when={"item": True})
    prior: str = setting(
        "what the item scores are added to: the frozen SASRec's log-probabilities, or nothing",
        choices=("sasrec", "none"),
        when={"item": True},
    )
    titles: str = setting(
        "LLM states of the items: of their texts with the adapter, read anew while it learns (adapted), or of the "
        "bare titles without it, half-whitened, read once per LLM (base)",
        choices=("adapted", "base"),
        when={"item": True},
    )
    refresh_steps: int | None = setting(
        "adapted: optimizer steps between new LLM states of the item texts; null: once per epoch",
        ge=1,
        when={"item": True, "titles": ("adapted",)},
    )
    negatives: int | None = setting(
        "items drawn per step beside the batch's targets; null: the full catalogue", ge=1, when={"item": True}
    )

    def problems(self) -> list[str]:
        return [] if self.item + self.lm else ["item, lm: found 0 and 0, expected a positive weight"]


@config_group
class TrainConfig:
    """The teacher's training loop."""

    # What a debug run (`teacher.overfit`) sets itself, or has no use for: it validates on its own rows, to the end.
    NOT_IN_OVERFIT: ClassVar = (
        *("samples", "batch_size", "epochs", "lr_floor", "weight_decay", "curriculum"),
        *("eval_samples", "evals_per_epoch", "patience", "show_answers", "checkpoint_minutes"),
    )

    epochs: int = setting("passes over the training samples", ge=1)
    samples: int | None = setting(
        "training samples used (drawn by seed); null: all; 0: the LLM as it is, untrained", ge=0
    )
    batch_size: int = setting("samples per optimizer step (effective batch)", ge=1)
    # Counts in fingerprints where the gate has BatchNorm, and only there: `IloraConfig.identity`.
    micro_batch_size: int | None = setting(
        "samples per forward pass; auto: as many as fit, found by halving batch_size until one does",
        ge=1,
        auto=True,
        in_fingerprint=False,
    )
    optimizer: str = setting("adam (L2) or adamw (decoupled decay)", choices=("adam", "adamw"))
    lr: float = setting("peak learning rate of LoRA, projector and item head", gt=0.0)
    gate_lr_ratio: float = setting("learning rate of the gate relative to lr", gt=0.0)
    lr_floor: float = setting("first and last learning rate relative to the peak", ge=0.0, le=1.0)
    warmup_share: float = setting(
        "share of the steps with a linearly rising rate; cosine after it", ge=0.0, lt=1.0
    )
    weight_decay: float = setting("decay of projector, gate and item head (LoRA has none)", ge=0.0)
    grad_clip: float | None = setting("largest gradient norm; null: no clipping", gt=0.0)
    curriculum: str = setting(
        "none, or linear: a step is hybrid with probability step / steps", choices=("none", "linear")
    )
    train_projector: bool = setting("train the projector of item vectors into the LLM (the code does)")
    precision: str = setting("arithmetic of the forward pass", choices=("no", "bf16"))
    device: str = setting("auto, cpu or cuda", choices=("auto", "cpu", "cuda"), in_fingerprint=False)
    eval_samples: int = setting("validation samples that choose the best epoch (drawn by seed)", ge=1)
    evals_per_epoch: int = setting("validations per epoch", ge=1)
    show_answers: int = setting(
        "validation rows whose generated answers TensorBoard shows at each validation (lm); 0: none",
        ge=0,
        in_fingerprint=False,
    )
    patience: int = setting("validations without gain before training stops", ge=1)
    checkpoint_minutes: float = setting("time between checkpoints for resuming", gt=0.0, in_fingerprint=False)

    @property
    def largest_pass(self) -> int:
        """Samples per forward pass that are tried first."""
        return self.micro_batch_size or self.batch_size


@config_group
class SimilarityConfig:
    """How title vectors rank the catalogue for a history."""

    decay: float = setting("weight of each step back in the history", gt=0.0, le=1.0)
    dim: int | None = setting("principal directions of the vectors that are compared; null: all", ge=1)
    whiten: float = setting(
        "singular values to the power 1 - whiten: 0 as they are, 0.5 half, 1 all equal", ge=0.0, le=1.0
    )
    temperature: float = setting("divides the cosine similarity", gt=0.0)
    popularity: float = setting("weight of log(1 + training count) beside the similarity", ge=0.0)


@config_group
class TitleStatesConfig:
    """How a text becomes one vector."""

    prompt: str = setting("text around {title}")
    pooling: str = setting(
        "mean: over the title's tokens; last: the last token's state; cls: the first token's (encoders)",
        choices=("mean", "last", "cls"),
    )
    layers: tuple[int, ...] = setting(
        "hidden layers whose mean is taken; 0: input embeddings, -1: the last block"
    )
    batch_size: int = setting("texts per forward pass", ge=1, in_fingerprint=False)
    device: str = setting("auto, cpu or cuda", choices=("auto", "cpu", "cuda"), in_fingerprint=False)

    def problems(self) -> list[str]:
        out = []
        if self.prompt.count("{title}") != 1:
            out.append(f"text.prompt: found {self.prompt!r}, expected {{title}} once")
        if not self.layers:
            out.append("text.layers: found none, expected at least one layer")
        return out
