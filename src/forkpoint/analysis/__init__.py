"""The paper's analysis of chains of thought: reads models and completions, never trains."""
