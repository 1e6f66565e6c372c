"""Which tokens get a policy gradient: a rule applied within a scope."""

from forkpoint.selection.rules import RULES, Candidates, Rule
from forkpoint.selection.select import scope_groups, select
from forkpoint.selection.tokens import select_tokens

__all__ = ["RULES", "Candidates", "Rule", "scope_groups", "select", "select_tokens"]
