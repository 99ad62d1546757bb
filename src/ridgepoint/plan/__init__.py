"""SEARCH: what to buy, how to lay it out and what it then costs. Knows catalog, cost and sched; never a tensor."""
