"""Planted bugs of what a fork takes over, and of what the ended leave behind; a part of mutants.py."""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant

S = "scheduler"
F = "sharing"
MUTANTS = (
    Mutant(
        "copy_source_not_held",
        F,
        """        sources.hold(source, req.salt)
""",
        "",
    ),
    Mutant(
        "copy_source_dropped_at_launch",
        "admission",
        """            req.copy_from = None
            self.core.counters.copied_pages += 1""",
        """            self.core._sources.drop(req.copy_from)
            self.core.pool.share(req.copy_from, req.salt)
            self.core.pool.drop(req.copy_from)
            req.copy_from = None
            self.core.counters.copied_pages += 1""",
    ),
    Mutant(
        "copy_missing",
        "admission",
        """            step.copies.append(PageCopy(req.copy_from, target))""",
        """            self.core._sources.drop(req.copy_from)""",
    ),
    Mutant(
        "copy_one_token_too_long",
        F,
        """        req.copy_from, req.copy_len = source, shared
""",
        """        req.copy_from, req.copy_len = source, min(shared + 1, len(req.tokens) - 1)
""",
    ),
    Mutant(
        "part_page_shared",
        F,
        """    full = shared // size
    if parent.lease""",
        """    full = min(-(-shared // size), len(parent.pages))
    if parent.lease""",
    ),
    Mutant(
        "fork_of_unlanded_tokens",
        F,
        """    shared = min(at, parent.landed_len, len""",
        """    shared = min(at, parent.computed_len, len""",
        within=300,
    ),
    Mutant(
        "fork_shares_the_last_token",
        F,
        """    at = min(at, req.reusable_len)
""",
        """    at = min(at, len(req.tokens))
""",
    ),
    Mutant(
        "fork_with_an_empty_lease",
        F,
        """    if not shared:
        return  # no lease either""",
        """    if not shared and parent.lease is None:
        return  # no lease either""",
    ),
    Mutant(
        "copy_source_counted_as_free",
        S,
        """            idle -= sum(map(self.tree.is_idle, self._sources))
""",
        "",
        within=300,
    ),
    Mutant(
        "copied_remnant_counted_as_free",
        S,
        """            idle -= sum([page in self._sources for page in self.remnants.pages()])
""",
        "",
        within=300,
    ),
    Mutant(
        "fork_counts_its_own_work_as_cached",
        "admission",
        """        if not req.admitted:
            req.admitted = True
            req.cached_len""",
        """        if not req.cached_len:
            req.admitted = True
            req.cached_len""",
    ),
    Mutant(
        "refused_fork_keeps_pages",
        S,
        """        if len(self.waiting) >= self.waiting_limit:""",
        """        if req.fork is not None:
            share_parent(req, self.tree, self._sources, self.remnants, cached=self.prefix_cache)
        if len(self.waiting) >= self.waiting_limit:""",
        within=200,
    ),
    Mutant(
        "remnant_without_an_owner",
        F,
        """            self._pool.share(page, req.salt)
            self._left""",
        """            self._left""",
    ),
    Mutant(
        "part_of_a_cached_page_is_one_token_longer",
        F,
        """        source, shared = found.node.page, at
""",
        """        source, shared = found.node.page, min(at + 1, len(req.tokens) - 1)
""",
        within=300,
    ),
    Mutant(
        "remnants_are_kept_when_pages_are_needed",
        S,
        """            if self.remnants.drop_one() or self.tree""",
        """            if self.tree""",
    ),
    Mutant(
        "flush_leaves_remnants",
        S,
        """        while self.remnants.drop_one():
            pass
""",
        "",
    ),
)
