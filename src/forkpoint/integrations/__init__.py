"""forkpoint inside other trainers. Nothing here is imported unless it is asked for."""
