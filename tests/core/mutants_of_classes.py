"""Planted bugs of classes, owners and promises; a part of mutants.py."""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant

MUTANTS = (
    Mutant(
        "promise_without_time_waits_its_turn",
        "line",
        """        if hurry and self.promised:""",
        """        if not hurry and self.promised:""",
    ),
    Mutant(
        "latest_promise_first",
        "line",
        """            return min(self.promised.values(), key=_due)""",
        """            return max(self.promised.values(), key=_due)""",
        within=200,
    ),
    Mutant(
        "low_ranks_starve",
        "line",
        """        return self._passed[rank] >= self.patience""",
        """        return False""",
        within=200,
    ),
    Mutant(
        "who_had_most_goes_first",
        "shares",
        """        return min(owners, key=self._had.__getitem__)""",
        """        return max(owners, key=self._had.__getitem__)""",
        within=400,
    ),
    Mutant(
        "last_of_an_owner_first",
        "line",
        """        return next(iter(own.values()))""",
        """        return next(reversed(own.values()))""",
    ),
    Mutant(
        "stuck_behind_a_promise_with_time",
        "admission",
        """            hurry = hurry or self.core.slots.free_count <= len(line.promised)
""",
        "",
        within=200,
    ),
    Mutant(
        "who_makes_way_loses_its_pages",
        "scheduler",
        """        if req.yielding:
            self._stay(req)
""",
        """        if req.yielding:
            self._stay(req)
            self._give_back(req)
            req.computed_len = req.landed_len = 0
""",
        within=200,
    ),
    Mutant(
        "planned_while_making_way",
        "scheduler",
        """        able = [req for req in able if not req.yielding] if self._yielding else able
""",
        "",
        within=400,
    ),
    Mutant(
        "quick_landing_of_one_making_way",
        "scheduler",
        """not (req.pausing or req.retracting or req.yielding)""",
        """not (req.pausing or req.retracting)""",
        within=200,
    ),
    Mutant(
        "who_makes_way_waits_no_more",
        "line",
        """        assert req.id not in self._all
        self._all[req.id] = req
        back = self._back[req.rank]""",
        """        self._all.pop(req.id, None)
        if req.admitted and not req.retractions:
            return
        self._all[req.id] = req
        back = self._back[req.rank]""",
    ),
    Mutant(
        "a_promise_gives_its_pages_first",
        "victims",
        """    return -1 if req.promise is not None else req.rank, req.id""",
        """    return 9 if req.promise is not None else req.rank, req.id""",
        within=400,
    ),
    Mutant(
        "shares_forget_who_left",
        "shares",
        """        self._live[owner] -= 1
""",
        "",
    ),
)
