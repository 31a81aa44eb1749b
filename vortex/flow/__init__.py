"""The frontend: flows as plain torch code, traced to flow IR or run eagerly as the oracle; check, cli and the driver
import it.
"""
