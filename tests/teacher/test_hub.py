"""Models by name: the shipped configurations, and one line for each way in which a model cannot be had."""

from __future__ import annotations

import threading
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from src.core.errors import UserError
from src.core.paths import CONF
from src.teacher.llm_loading import load_llm
from tests.teacher.conftest import compose_teacher

SHIPPED = {
    "smollm2_135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "float32"),
    "smollm2_360m": ("HuggingFaceTB/SmolLM2-360M-Instruct", "float32"),
    "smollm2_1_7b": ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "bfloat16"),
    "smollm3_3b": ("HuggingFaceTB/SmolLM3-3B", "bfloat16"),
    "qwen2_5_0_5b": ("Qwen/Qwen2.5-0.5B", "float32"),
    "qwen2_5_1_5b": ("Qwen/Qwen2.5-1.5B", "bfloat16"),
    "qwen2_5_3b": ("Qwen/Qwen2.5-3B", "bfloat16"),
    "qwen2_5_7b": ("Qwen/Qwen2.5-7B", "bfloat16"),
    "qwen3_0_6b": ("Qwen/Qwen3-0.6B-Base", "bfloat16"),
    "qwen3_1_7b": ("Qwen/Qwen3-1.7B-Base", "bfloat16"),
    "qwen3_4b": ("Qwen/Qwen3-4B-Base", "bfloat16"),
    "qwen3_8b": ("Qwen/Qwen3-8B-Base", "bfloat16"),
    "llama3_2_1b": ("meta-llama/Llama-3.2-1B", "bfloat16"),
    "llama3_2_3b": ("meta-llama/Llama-3.2-3B", "bfloat16"),
    "gemma2_2b": ("google/gemma-2-2b", "bfloat16"),
    "gemma3_270m": ("google/gemma-3-270m", "bfloat16"),
    "gemma3_1b": ("google/gemma-3-1b-pt", "bfloat16"),
    "gemma_2b": ("google/gemma-2b", "bfloat16"),
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", "bfloat16"),
    "llama3_8b": ("meta-llama/Meta-Llama-3-8B", "bfloat16"),
    "opt_125m": ("facebook/opt-125m", "float32"),
    "pythia_70m": ("EleutherAI/pythia-70m", "float32"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_models_that_users_name(name):
    config = compose_teacher(f"teacher/llm={name}").llm
    assert (config.kind, config.path, config.dtype) == ("hub", *SHIPPED[name])
    assert config.tiny is None and config.gradient_checkpointing == (config.dtype == "bfloat16")
    assert compose_teacher("teacher=ilora_paper", f"teacher/llm={name}").llm == config
    # The command at the head of the file names settings of training that there are.
    command = (
        (CONF / "teacher" / "llm" / f"{name}.yaml").read_text().splitlines()[1].removeprefix("# ").split()
    )
    assert compose_teacher(*command).llm == config


@pytest.mark.parametrize("size", ["tiny", "135m", "600m", "3b", "8b"])
def test_what_depends_on_the_size_of_the_llm(size):
    config = compose_teacher(f"teacher/train={size}")
    assert config.train.micro_batch_size <= config.train.batch_size
    changed = {"lr", "micro_batch_size", "precision"}
    default = compose_teacher().train
    same = {f.name for f in fields(default)} - changed
    assert all(getattr(config.train, name) == getattr(default, name) for name in same)
    assert (config.train == default) == (size == "tiny")


@pytest.mark.parametrize("name", ["product", "shop", "game", "movie", "music", "book"])
def test_the_prompts_that_users_name(name):
    prompt = compose_teacher(f"teacher/prompt={name}").prompt
    assert len(prompt.train) == 3 and prompt.evaluation == prompt.train[0]


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a gated, a missing and an unknown revision of a model."""

    def do_HEAD(self):  # noqa: N802
        code = "GatedRepo" if "/gated/" in self.path else "RepoNotFound"
        code = "RevisionNotFound" if "/resolve/" in self.path and "/nowhere/" in self.path else code
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_args):
        pass


class TestHub:
    """Models that cannot be had, without a network: each reason in one line, with what to do."""

    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def hub(self, monkeypatch):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield address
        server.shutdown()
        server.server_close()

    def refusal(self, *overrides: str) -> str:
        with pytest.raises(UserError) as error:
            load_llm(compose_teacher("teacher/llm=llama2_7b", *overrides).llm)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_offline(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets at import
        line = self.refusal()
        assert "meta-llama/Llama-2-7b-hf" in line and "HF_HUB_OFFLINE is set" in line
        assert "HF_TOKEN" in line and "change teacher.llm.path" in line

    def test_gated(self, hub):
        line = self.refusal("teacher.llm.path=gated/model")
        assert "gated/model" in line and "is gated" in line and f"{hub}/gated/model" in line
        assert "HF_TOKEN" in line

    def test_missing(self, hub):
        line = self.refusal("teacher.llm.path=some/model")
        assert "some/model" in line and "is not on the hub, or private" in line
        assert "HF_TOKEN" in line and "change teacher.llm.path" in line

    def test_revision(self, hub):
        line = self.refusal("teacher.llm.path=some/model", "teacher.llm.revision=nowhere")
        assert "(revision nowhere): no such revision" in line and "teacher.llm.revision" in line
