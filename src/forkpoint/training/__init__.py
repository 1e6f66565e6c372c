"""The training step, the loop around it, and what makes a run survive being killed."""
