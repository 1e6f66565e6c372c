"""Charts, one function each: the same drawing goes into the report and into a paper.

Only what draws imports Altair and vl-convert, and only when it draws.
"""
