"""What a Python program calls beside flows and decoders: compiling, and one decode step; `vortex` names them, and only
programs import it.
"""
