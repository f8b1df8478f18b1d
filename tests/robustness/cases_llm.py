"""Language models that are not what their names say, and titles that a tokenizer cannot take."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.robustness.cases import Box, Case
from tests.teacher.llm_folders import edit_json, edit_tensors, write_gguf, write_llama

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"
BLOCK = "model.layers.1."
_KEY = "teacher.llm.path"
Damage = Callable[[Path], object]


@cache
def _sound() -> Path:
    return write_llama(Path(mkdtemp(prefix="anyo_llm_")) / "llama")


@cache
def _config():
    from tests.teacher.conftest import compose_teacher

    return compose_teacher("teacher/llm=local", f"{_KEY}=/x").llm


def _check(path: Path, load: bool = False, **changes: object) -> None:
    from src.teacher.llm_loading import check_llm, load_llm

    config = replace(_config(), path=str(path), **changes)
    load_llm(config) if load else check_llm(config, "auto")


def _case(name: str, damage: Damage, *says: str, load: bool = False, **changes: object) -> Case:
    """A sound folder, damaged. `damage` may return another path to name."""

    def run(box: Box) -> None:
        folder = shutil.copytree(_sound(), box.folder / "llm")
        changed = damage(folder)
        _check(changed if isinstance(changed, Path) else folder, load, **changes)

    return Case(f"LLM: {name}", run, says or (_KEY,))


def _write(file: str, content: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def _gone(*files: str) -> Damage:
    return lambda folder: [(folder / f).unlink() for f in files]


def _cut(file: str, by: int) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-by])


def _config_json(**changes: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def _tensors(change: Callable[[dict], dict]) -> Damage:
    return lambda folder: edit_tensors(folder, change)


def _prefixed(prefix: str) -> Damage:
    return _tensors(lambda t: {prefix + name: tensor for name, tensor in t.items()})


def _template(text: str) -> Damage:
    return _write("chat_template.jinja", text)


def _shards(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def _and(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def llm_cases() -> Iterator[Case]:
    yield from _places()
    yield from _files()
    yield from _keys()
    yield from _kinds()
    yield from _gguf()
    yield from _adapters()
    yield from _titles()


def _places() -> Iterator[Case]:
    yield _case("a typo", lambda f: f / "llma", "llma holds no config.json: there is no such folder", _KEY)
    yield _case("a text file", lambda f: f / "config.json", "config.json is a file", "a folder", _KEY)
    yield _case("an empty folder", lambda f: (f / "new").mkdir() or f / "new", "holds no config.json", _KEY)
    yield _case(
        "one folder too high", lambda f: f.parent, "holds no config.json", "a folder in Hugging Face layout"
    )


def _files() -> Iterator[Case]:
    weights = "model.safetensors"
    for file in ("config.json", weights, "tokenizer.json"):
        yield _case(
            f"{file} is a Git LFS pointer", _write(file, POINTER), file, "Git LFS pointer", "git lfs pull"
        )
        yield _case(f"{file} is empty", _write(file, ""), f"{file} is empty", _KEY)
    yield _case("config.json cut short", _cut("config.json", 9), "config.json cannot be read", "JSON")
    yield _case("config.json is a list", _write("config.json", "[]"), "config.json holds a list")
    yield _case("config.json of nothing", _write("config.json", "{}"), "cannot be loaded", _KEY)
    yield _case("weights cut short", _cut(weights, 1), f"{weights} has ", "as its header says")
    yield _case("half of the weights", _cut(weights, 30_000), f"{weights} has ", "as its header says")
    yield _case("weights with a tail", lambda f: (f / weights).open("ab").write(b"0"), f"{weights} has ")
    yield _case(
        "a page of HTML as weights", _write(weights, "<html>not found</html>"), "no safetensors header"
    )
    yield _case(
        "a header without tensors", _write(weights, (2).to_bytes(8, "little") + b"{}"), "holds no tensor"
    )
    yield _case("no weights", _gone(weights), "holds no weights", weights)
    yield _case(
        "pickled weights alone",
        lambda f: (f / weights).rename(f / "pytorch_model.bin") and None,
        "pytorch_model.bin is pickled",
        "model.safetensors",
    )
    yield _case(
        "a shard is missing",
        _and(_shards, _gone("model-00002-of-00006.safetensors")),
        "00002-of-00006",
        "is missing",
    )
    yield _case(
        "a shard is cut short",
        _and(_shards, _cut("model-00002-of-00006.safetensors", 4)),
        "00002-of-00006",
        "has ",
    )
    yield _case(
        "shards without their index", _and(_shards, _gone(f"{weights}.index.json")), "index.json is missing"
    )
    yield _case(
        "an index of nothing", _and(_shards, _write(f"{weights}.index.json", "{}")), "has no weight_map"
    )
    yield _case(
        "no tokenizer",
        _gone("tokenizer.json", "tokenizer_config.json"),
        "holds no tokenizer",
        "tokenizer.json",
    )
    yield _case("half a tokenizer", _cut("tokenizer.json", 99), "tokenizer.json", _KEY)


def _keys() -> Iterator[Case]:
    first = "the first model.layers.1.input_layernorm.weight"
    yield _case(
        "a weight is missing",
        _tensors(lambda t: {k: v for k, v in t.items() if "norm" not in k[-12:]}),
        "lacks",
    )
    yield _case(
        "saved with an adapter's prefix", _prefixed("base_model.model."), "lacks", "'base_model.model.'"
    )
    yield _case("saved in parallel", _prefixed("module."), "lacks", "'module.'")
    yield _case("saved inside another model", _prefixed("llm."), "lacks", "'llm.'")
    yield _case(
        "a block is missing",
        _tensors(lambda t: {k: v for k, v in t.items() if BLOCK not in k}),
        *("lacks 9 of the model's weights", first, _KEY),
    )
    yield _case(
        "more blocks than weights",
        _config_json(num_hidden_layers=3),
        "lacks 9",
        "model.layers.2.input_layernorm",
    )
    yield _case(
        "fewer blocks than weights", _config_json(num_hidden_layers=1), "has no place for", "first " + BLOCK
    )
    yield _case(
        "an untied head that is absent",
        _tensors(lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
        *("lacks 1 ", "the first lm_head.weight"),
    )
    yield _case(
        "no embeddings", _tensors(lambda t: {k: v for k, v in t.items() if "embed" not in k}), "embed_tokens"
    )
    yield _case(
        "a wider configuration",
        _config_json(intermediate_size=64),
        "down_proj.weight is (32, 48)",
        "(32, 64)",
    )
    yield _case("a larger vocabulary", _config_json(vocab_size=400), "weight is (320, 32)", "(400, 32)")
    yield _case(
        "a weight too many",
        _tensors(lambda t: t | {"score.weight": torch.zeros(2, 32)}),
        "first score.weight",
    )
    yield _case(
        "biases that the configuration does not know",
        _tensors(lambda t: t | {f"{BLOCK}self_attn.q_proj.bias": torch.zeros(32)}),
        *("has no place for", "q_proj.bias"),
    )
    for value in (float("nan"), float("inf")):
        poison = _tensors(lambda t, v=value: t | {"model.norm.weight": t["model.norm.weight"] * v})
        yield _case(f"weights of {value}", poison, "model.norm.weight holds NaN or infinity", _KEY, load=True)
    yield _case(
        "float16 overflow",
        _tensors(lambda t: t | {"model.norm.weight": t["model.norm.weight"] * 1e6}),
        "model.norm.weight holds NaN or infinity",
        load=True,
        dtype="float16",
    )


def _kinds() -> Iterator[Case]:
    def model(config: object, cls: str) -> Damage:
        def damage(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            getattr(transformers, cls)(config).save_pretrained(folder)

        return damage

    small = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    t5 = transformers.T5Config(**small)
    yield _case("T5", model(t5, "T5ForConditionalGeneration"), "an encoder-decoder model (t5)", "causal")
    vit = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    yield _case("a vision model", model(vit, "ViTModel"), "no language model known here: model_type vit")
    yield _case(
        "a model that also sees",
        _config_json(vision_config={"hidden_size": 8}),
        "more than text (vision_config)",
    )
    yield _case("an unknown kind", _config_json(model_type="lama"), "cannot be loaded", "lama")
    yield _case(
        "code of its own",
        _config_json(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "needs Python code that comes with it",
        "trust_remote_code",
    )

    def tokens(*words: str) -> Damage:
        def damage(folder: Path) -> None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            tokenizer.add_tokens(list(words))
            tokenizer.save_pretrained(folder)

        return damage

    def smaller(folder: Path) -> None:
        edit_tensors(folder, lambda t: {k: v[:300] if len(v) == 320 else v for k, v in t.items()})
        edit_json(folder / "config.json", vocab_size=300)

    yield _case(
        "tokens without a row",
        tokens("<new>"),
        "token 320 ('<new>') is beyond the 320 rows",
        "the tokenizer that",
    )
    yield _case("another vocabulary", smaller, "is beyond the 300 rows of the embedding matrix")
    for word in ("[HistoryEmb]", "[CansEmb]", "{item}"):

        def room(folder: Path, word: str = word) -> None:
            tokens(word)(folder)
            edit_tensors(
                folder, lambda t: {k: torch.cat([v, v[:9]]) if len(v) == 320 else v for k, v in t.items()}
            )
            edit_json(folder / "config.json", vocab_size=329)

        yield _case(
            f"the token {word}", room, f"'{word}', a placeholder of prompts, is a token", "tokenizer.json"
        )
    yield _case(
        "a template that never ends",
        _template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        *("chat template fails", "no end within", "/llm", "teacher.prompt.chat"),
    )
    yield _case("a template with a slip", _template("{% for m in messages %}"), "chat template fails", "/llm")
    yield _case("a template without the message", _template("Hello"), "shows a message 0 times")


def _gguf() -> Iterator[Case]:
    def case(name: str, damage: Callable[[Path], object], *says: str) -> Case:
        def convert(folder: Path) -> Path:
            file = write_gguf(folder, folder.parent / "model.gguf")
            changed = damage(file)
            return changed if isinstance(changed, Path) else file

        return _case(f"GGUF: {name}", convert, *says, kind="gguf")

    yield case("a typo", lambda f: f.with_name("modle.gguf"), "modle.gguf does not exist", _KEY)
    yield case("its folder", lambda f: f.parent, "does not end in .gguf", "teacher/llm=local")
    yield case(
        "a Git LFS pointer", lambda f: f.write_text(POINTER) and None, "Git LFS pointer", "git lfs pull"
    )
    yield case("empty", lambda f: f.write_bytes(b"") and None, "does not begin with GGUF")
    yield case(
        "safetensors by another name",
        lambda f: f.write_bytes(b"{}" * 99) and None,
        "does not begin with GGUF",
    )
    yield case(
        "cut short",
        lambda f: f.write_bytes(f.read_bytes()[:-5000]) and None,
        "model.gguf cannot be loaded",
        _KEY,
    )
    yield case(
        "its header alone",
        lambda f: f.write_bytes(f.read_bytes()[:300]) and None,
        "model.gguf cannot be loaded",
    )
    part = "model-00001-of-00002.gguf"
    yield case("a part", lambda f: f.rename(f.with_name(part)), "a part of a split GGUF file", "--merge")

    def local(folder: Path) -> Path:
        return write_gguf(folder, folder.parent / "model.gguf")

    yield _case("a GGUF file as a folder", local, "is a GGUF file", "teacher/llm to gguf")

    def inside(folder: Path) -> Path:
        write_gguf(folder, folder / "new.gguf")
        (folder / "config.json").unlink()
        return folder

    yield _case(
        "a folder around a GGUF file", inside, "no config.json but a GGUF file", "teacher/llm to gguf"
    )


def _adapters() -> Iterator[Case]:
    def adapter(folder: Path) -> None:
        from peft import LoraConfig, get_peft_model

        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)

    def cut_adapter(change: Callable[[dict], dict]) -> Damage:
        def damage(folder: Path) -> None:
            adapter(folder)
            save_file(
                change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors"
            )

        return damage

    merge, key = {"merge_adapter": True, "load": True}, "teacher.llm.merge_adapter"
    yield _case("an adapter beside the weights", adapter, "adapter_config.json) beside the weights", key)
    yield _case(
        "an adapter alone",
        _and(adapter, _gone("config.json", "model.safetensors")),
        "an adapter without config.json",
        "the folder of its base",
    )
    yield _case(
        "no adapter to merge", lambda f: None, "holds no adapter_config.json", key, merge_adapter=True
    )
    yield _case(
        "an adapter without weights",
        _and(adapter, _gone("adapter_model.safetensors")),
        "adapter_model.safetensors is missing",
        key,
        **merge,
    )
    yield _case(
        "half an adapter", cut_adapter(lambda t: dict(list(t.items())[:1])), "lacks", "lora_", key, **merge
    )
    yield _case(
        "another rank",
        cut_adapter(lambda t: {k: torch.cat([v, v], int("lora_B" in k)) for k, v in t.items()}),
        "the adapter cannot be merged",
        key,
        **merge,
    )
    yield _case(
        "another model's adapter",
        _and(adapter, lambda f: edit_json(f / "adapter_config.json", target_modules=["c_attn"])),
        *("the adapter cannot be merged", key),
        **merge,
    )


def _titles() -> Iterator[Case]:
    def build(title: str, **changes: object) -> Callable[[Box], None]:
        def run(box: Box) -> None:
            from src.teacher.prompts import PromptBuilder
            from tests.teacher.conftest import compose_teacher

            words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4, ":": 5, "chose": 6}
            (box.folder / "vocab.txt").write_text("\n".join(words))
            tokenizer = transformers.BertTokenizerFast(vocab=words)
            prompt = replace(compose_teacher().prompt, **changes)
            PromptBuilder(prompt, tokenizer, ["", "a", "chose", title], 256, 0)

        return run

    fix = ("the items file", "tokenizer knows these characters")
    yield Case(
        "titles: unknown to the tokenizer", build("星"), ("item 3 ('星')", "no tokens but the unknown", *fix)
    )
    yield Case("titles: unknown words", build("星 月 日"), ("item 3 ('星 月 日')", *fix))
    yield Case(
        "titles: only what the tokenizer drops",
        build("\u200b\u200d"),
        ("title of item 3", "has no tokens", *fix),
    )
    yield Case("titles: blank", build(" \u3000 "), ("the title of item 3 is empty",))
