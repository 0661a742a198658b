"""The balance plan, seed-addressed shards, and the rounds that fill the plan."""
