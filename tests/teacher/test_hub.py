"""Models by name: the shipped configurations, and one line for each way in which a model cannot be had."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from src.core.errors import UserError
from src.teacher.llm_loading import load_llm
from tests.teacher.conftest import compose_teacher
from tests.teacher.test_families import FAMILIES, write_family

SHIPPED = {
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", "bfloat16"),
    "llama3_8b": ("meta-llama/Meta-Llama-3-8B", "bfloat16"),
    "qwen2_5_0_5b": ("Qwen/Qwen2.5-0.5B", "float32"),
    "qwen2_5_7b": ("Qwen/Qwen2.5-7B", "bfloat16"),
    "gemma_2b": ("google/gemma-2b", "bfloat16"),
    "opt_125m": ("facebook/opt-125m", "float32"),
    "pythia_70m": ("EleutherAI/pythia-70m", "float32"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_models_that_users_name(name):
    config = compose_teacher(f"teacher/llm={name}").llm
    assert (config.kind, config.path, config.dtype) == ("hub", *SHIPPED[name])
    assert config.tiny is None and config.gradient_checkpointing == (config.dtype == "bfloat16")
    assert compose_teacher("teacher=ilora_paper", f"teacher/llm={name}").llm == config


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

    def test_a_local_folder_with_broken_weights(self, demo_data, tmp_path):
        folder = write_family(FAMILIES["llama"], tmp_path / "broken", demo_data)
        (folder / "model.safetensors").unlink()
        line = self.refusal("teacher/llm=local", f"teacher.llm.path={folder}")
        assert str(folder) in line and "cannot be loaded" in line and "teacher.llm.path" in line
