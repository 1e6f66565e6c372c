"""From a completion's text to a verdict: the answer is found, then compared.

A verifier is a picklable callable ``(columns, text) -> score``. A task may have one of its own;
``rewards`` names the others. Whatever text they are given, they return. Nothing in it is run, but
by ``CodeVerifier``, in a sandbox.
"""

from forkpoint.verifiers.code import CodeVerifier
from forkpoint.verifiers.math import MathVerifier
from forkpoint.verifiers.text import FormatVerifier, IntegerVerifier, Verifier

__all__ = ["CodeVerifier", "FormatVerifier", "IntegerVerifier", "MathVerifier", "Verifier"]
