"""The frontend: flows as plain torch code, traced to flow IR; run eagerly, the same code is the oracle."""
