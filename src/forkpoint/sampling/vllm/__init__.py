"""Sampling by vLLM servers: ``rollout.engine = "vllm"``; see docs/vllm.md."""

from forkpoint.sampling.vllm.engine import Probe, Served, VllmEngine

__all__ = ["Probe", "Served", "VllmEngine"]
