"""Why a language model could not be loaded: the libraries' exceptions as one line each, with what to do."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from src.core.errors import UserError
from src.teacher.config_llm import LLMConfig

_PATH = "teacher.llm.path"


def load_error(config: LLMConfig, label: str, error: Exception) -> UserError:
    """The line for `error`; a library's exception carries the hub's own as its cause.

    Args:
        label: the model, as messages call it.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def came(*kinds: type[Exception]) -> bool:
        return any(isinstance(c, kinds) for c in causes)

    why = " ".join(
        f"{'' if isinstance(error, (OSError, ValueError)) else type(error).__name__ + ': '}{error}".split()
    )
    if isinstance(error, ValueError) and "attention implementation" in why:
        key = "teacher.llm.attention"
        return UserError(f"{label} has no {key}={config.attention}", "eager", key)
    if "custom code" in why:
        return UserError(
            f"{label} needs Python code that comes with it",
            "a model of this transformers version",
            "teacher.llm.trust_remote_code to true, if you trust its authors",
        )
    if config.kind != "hub":
        expected = "a whole model of this transformers version"
        return UserError(f"{label} cannot be loaded: {why[:300]}", expected, _PATH)
    if came(GatedRepoError):  # a kind of RepositoryNotFoundError: first
        page = f"{constants.ENDPOINT}/{config.path}"
        return UserError(
            f"{label} is gated",
            f"its licence accepted at {page}, and the account's token in HF_TOKEN or by `hf auth login`",
            f"{_PATH} to an open model otherwise",
        )
    if came(RevisionNotFoundError):
        return UserError(f"{label}: no such revision", "a commit, tag or branch", "teacher.llm.revision")
    if came(RepositoryNotFoundError):
        return UserError(
            f"{label} is not on the hub, or private",
            "owner/name as on its page; for a private one a token in HF_TOKEN or by `hf auth login`",
            _PATH,
        )
    if came(LocalEntryNotFoundError, OfflineModeIsEnabled):  # lost connections, timeouts, offline mode
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
        return UserError(
            f"{label} is not in the cache {constants.HF_HUB_CACHE}, and {reason}",
            "one download with a connection (gated models: HF_TOKEN), or a copy (teacher/llm=local)",
            _PATH,
        )
    return UserError(
        f"{label} cannot be loaded: {why[:300]}",
        "a model that is there and that you may read",
        f"{_PATH} or revision, or give a token (HF_TOKEN, `hf auth login`)",
    )
