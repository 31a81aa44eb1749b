"""A synthetic batch on an artifact and what it must give: imports runtime, flow and ir; cli and tune import it."""
