"""DECISIONS: which tokens run next, where their KV lives. Never sees a tensor, a socket or the wall clock."""
