"""The hot loop of a trading host: records, rings, features, risk, the loop itself, and what watches it."""
