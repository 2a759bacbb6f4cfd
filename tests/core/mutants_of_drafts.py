"""Planted bugs of prompts that are typed; typists.py must catch every one."""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant

D = "drafts"
MUTANTS = (
    Mutant(
        "text_changes_under_a_chunk",
        D,
        """        if req.inflight:
            self._next""",
        """        if False:
            self._next""",
    ),
    Mutant(
        "last_text_is_forgotten",
        D,
        """            self._next[req.id] = (ids, spans)""",
        """            self._next.setdefault(req.id, (ids, spans))""",
    ),
    Mutant(
        "cut_one_too_far",
        D,
        """min(self.ready(req), self.common(req, ids, spans)))""",
        """min(self.ready(req), self.common(req, ids, spans) + 1))""",
    ),
    Mutant(
        "no_cut_at_all",
        D,
        """        if keep >= self.ready(req):
            return
        full""",
        """        if keep >= 0:
            return
        full""",
    ),
    Mutant(
        "written_into_a_page_that_others_have",
        D,
        """            if core.pool.refs(page) == 1:""",
        """            if core.pool.refs(page):""",
    ),
    Mutant(
        "copy_of_more_than_is_wanted",
        D,
        """                req.copy_len = keep  # of the same page
                return""",
        """                return""",
        within=200,
    ),
    Mutant(
        "source_of_a_copy_is_never_let_go",
        D,
        """            core._sources.drop(req.copy_from)
            req.copy_from = None
        keeps""",
        """            req.copy_from = None
        keeps""",
    ),
    Mutant(
        "lease_reaches_beyond_the_cut",
        D,
        """        if req.lease is not None and req.lease.depth > full:""",
        """        if False:""",
    ),
    Mutant(
        "pages_behind_the_cut_are_lost",
        D,
        """        for page in req.pages[keeps:]:
            core.pool.drop(page)
""",
        "",
    ),
    Mutant(
        "freed_under_its_chunk",
        D,
        """            if not req.inflight:
                self._release(req)""",
        """            self._core._give_back(req)
            if not req.inflight:
                self._release(req)""",
    ),
    Mutant(
        "given_up_under_its_chunk",
        D,
        """if not req.inflight and (req.pages or""",
        """if (req.pages or""",
        within=200,
    ),
    Mutant(
        "slot_is_lost",
        D,
        """        self._core.slots.give_back(req.slot)
""",
        "",
    ),
    Mutant(
        "last_slot_is_taken",
        D,
        """        spare = min(1, core.slots.count - 1)""",
        """        spare = 0""",
    ),
    Mutant(
        "comes_before_who_waits",
        D,
        """        if not self.held or core.waiting or (""",
        """        if not self.held or (""",
    ),
    Mutant(
        "a_draft_that_is_gone_lands",
        D,
        """        if req.finish is not None:
            self._release(req)
        elif""",
        """        if req.finish is not None:
            pass
        elif""",
    ),
    Mutant(
        "given_up_for_nobody_else",
        "scheduler",
        """            elif not self.drafts.give_way():
                return False""",
        """            else:
                return False""",
    ),
    Mutant(
        "admission_waits_for_typists",
        "admission",
        """            if not fits and self.core.drafts.give_way():
                continue
""",
        "",
    ),
)
