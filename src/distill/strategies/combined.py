"""Two strategies as one: their union, or one within what the other keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from src.core.config import config_group, setting
from src.core.errors import UserError
from src.distill.selection_policy import POLICIES, SelectionContext, SelectionPolicy, register


@register("combined")
class Combined(SelectionPolicy):
    """`union`: a share by the first, the rest by the second; `stack`: the second chooses among what the first keeps."""

    @config_group
    class Options:
        mode: str = setting("union, or stack", choices=("union", "stack"))
        first: str = setting("name of a strategy")
        second: str = setting("name of a strategy")
        first_options: dict = setting("its options")
        second_options: dict = setting("its options")
        share: float = setting("union: share of the samples that the first one chooses", ge=0, le=1)
        narrow: float = setting("stack: samples that the first one keeps, times the count", ge=1)

        def problems(self) -> list[str]:
            usable = [
                name for name, cls in POLICIES.items() if cls.subset and not cls.online and name != "combined"
            ]
            return [
                f"{key}: found {getattr(self, key)!r}, expected one of {', '.join(sorted(usable))}"
                for key in ("first", "second")
                if getattr(self, key) not in usable
            ]

    def part(self, name: str, options: dict, context: SelectionContext) -> SelectionPolicy:
        config = replace(self.config, policy=name, options=options, share=None, count=None)
        return POLICIES[name](config, context)

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        o, context = self.options, self.context
        first, ones = self.part(o.first, o.first_options, context), np.ones(len(context))
        if o.mode == "stack":
            kept = np.sort(first.choose(epoch, min(len(context), int(o.narrow * count)))[0])
            within = replace(
                context,
                sample_ids=context.sample_ids[kept],
                targets=context.targets[kept],
                users=None if context.users is None else context.users[kept],
            )
            return kept[self.part(o.second, o.second_options, within).choose(epoch, count)[0]], ones
        mine = first.choose(epoch, int(o.share * count + 0.5))[0]
        ordered = self.part(o.second, o.second_options, context).choose(epoch, count)[0]
        others = ordered[~np.isin(ordered, mine)][: count - len(mine)]
        if len(mine) + len(others) < count:
            raise UserError(
                f"active.options: {o.first} and {o.second} reach {len(mine) + len(others)} samples",
                str(count),
            )
        return np.concatenate([mine, others]), ones
