"""All strategies: importing this package fills `POLICIES`."""

from src.core.config import build, did_you_mean
from src.distill.config import ActiveConfig
from src.distill.selection_policy import POLICIES, SelectionContext, SelectionPolicy
from src.distill.strategies import by_student, by_teacher, combined, geometry, sampling

__all__ = ["by_student", "by_teacher", "active_problems", "combined", "geometry", "make_policy", "sampling"]


def make_policy(config: ActiveConfig, context: SelectionContext) -> SelectionPolicy:
    """The strategy that `active.policy` names.

    Raises:
        UserError: it asks for more samples than there are.
    """
    return POLICIES[config.policy](config, context)


def active_problems(config: ActiveConfig) -> list[str]:
    """What is wrong with `conf/active`, one line each with its key."""
    policy = POLICIES.get(config.policy)
    if policy is None:
        names = sorted(POLICIES)
        close = did_you_mean(config.policy, names)
        return [f"active.policy: found {config.policy!r}, expected one of {', '.join(names)}{close}"]
    out: list[str] = []
    given = [name for name in ("share", "count") if getattr(config, name) is not None]
    if len(given) != (1 if policy.subset else 0):
        wanted = "exactly one of share, count" if policy.subset else "neither share nor count"
        out.append(f"active.share, active.count: found {' and '.join(given) or 'neither'}, expected {wanted}")
    if config.refresh_every is not None and not policy.refreshable:
        out.append(
            f"active.refresh_every: found {config.refresh_every}, expected null: {config.policy} never changes"
        )
    if policy.online and config.refresh_every is None:
        out.append(
            f"active.refresh_every: found null, expected a number of epochs: {config.policy} learns while training"
        )
    if config.refresh_every is not None and config.use != ("distill",):
        out.append(
            f"active.refresh_every: found {config.refresh_every} with use={list(config.use)}, expected null, or use=[distill]"
        )
    if "teacher" in policy.needs and config.use != ("distill",):
        out.append(
            f"active.use: found {list(config.use)}, expected [distill]: {config.policy} looks at the teacher's rows"
        )
    if config.weighted and config.policy in ("all", "random"):
        out.append(
            f"active.weighted: found true, expected false: {config.policy} gives every sample one score"
        )
    if config.meta is not None and config.refresh_every is not None:
        out.append(
            f"active.meta: found {config.meta} with refresh_every={config.refresh_every}, expected one of the two"
        )
    build(policy.Options, config.options, "active.options", out)
    return out
